"""Comparing arrays and discrete choices with what they should be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Bits of the significand behind the leading one, and the smallest normal exponent.
PRECISION = {"float64": (52, -1022), "float32": (23, -126), "float16": (10, -14),
             "bfloat16": (7, -126)}  # fmt: skip
# Upper ends of the classes of differences, in units in the last place; the last class is open.
ULP_EDGES = (0.0, 0.5, *(2.0**i for i in range(0, 25, 2)))


@dataclass
class Difference:
    """How far found values are from expected ones, pooled over many calls of `add`.

    Attributes
    ----------
    dtype : whose units in the last place `ulps` counts.
    squared, squared_expected : sums over all elements.
    rows, fourth : how many rows there were, and the sum of the squares of their `squared`.
    worst_row : the largest L2 difference of one row (a token, a position of a state), relative to
        the row, or to the root mean square of all rows of its array where that is larger: a row
        that is small by chance has lost its digits before.
    ulps : how many elements differ by up to each of `ULP_EDGES`, and by more than the last.
    worst : the element that differs most: place, coordinates, both values.
    """

    dtype: str = "float32"
    squared: float = 0.0
    squared_expected: float = 0.0
    rows: int = 0
    fourth: float = 0.0
    elements: int = 0
    non_finite: int = 0
    worst_row: float = 0.0
    ulps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(ULP_EDGES) + 1, np.int64))
    worst: dict[str, Any] = field(default_factory=dict)

    def add(self, found: Array, expected: Array, place: str, rows: Array | None = None) -> None:
        """Pool `found` against `expected` [rows..., width]; `rows` False leaves a row out.

        `place` says where this was, for the report of the worst element.
        """
        if found.shape != expected.shape:
            raise ValueError(f"{place}: expected shape {expected.shape}, found {found.shape}")
        found, expected = found.astype(np.float64), expected.astype(np.float64)
        kept = np.ones(found.shape[:-1], bool) if rows is None else rows
        finite = np.isfinite(found)
        bad = ~finite & kept[..., None]
        self.non_finite += int(bad.sum())
        if bad.any():
            self._note(np.inf, np.argwhere(bad)[0], found, expected, place)
        difference = np.where(finite & kept[..., None], np.abs(found - expected), 0.0)
        of_rows = np.square(difference).sum(-1)
        expected_of_rows = np.where(kept, np.square(expected).sum(-1), 0.0)
        self.squared += float(of_rows.sum())
        self.fourth += float(np.square(of_rows).sum())
        self.rows += int(kept.sum())
        self.squared_expected += float(expected_of_rows.sum())
        if of_rows.size:
            usual = expected_of_rows.sum() / max(int(kept.sum()), 1)
            with np.errstate(divide="ignore", invalid="ignore"):
                of_rows = np.where(of_rows > 0, of_rows / np.maximum(expected_of_rows, usual), 0.0)
            self.worst_row = max(self.worst_row, float(np.sqrt(of_rows.max())))
        counted = finite & kept[..., None]
        units = difference[counted] / _unit_in_last_place(expected[counted], self.dtype)
        classes = np.searchsorted(ULP_EDGES, units)
        self.ulps += np.bincount(classes, minlength=len(self.ulps))
        self.elements += int(kept.sum()) * found.shape[-1]
        if difference.size:
            at = np.unravel_index(int(difference.argmax()), difference.shape)
            self._note(float(difference[at]), at, found, expected, place)

    def _note(self, size: float, at: Any, found: Array, expected: Array, place: str) -> None:
        if size > self.worst.get("difference", 0.0):
            at = tuple(int(i) for i in at)
            self.worst = {
                "difference": size, "place": place, "coordinates": list(at),
                "expected": float(expected[at]), "found": float(found[at]),
            }  # fmt: skip

    @property
    def relative(self) -> float:
        """Relative L2 difference; infinite where a value is not finite."""
        if self.non_finite:
            return float("inf")
        if self.squared_expected == 0:
            return 0.0 if self.squared == 0 else float("inf")
        return float(np.sqrt(self.squared / self.squared_expected))

    @property
    def uncertainty(self) -> float:
        """The relative standard error of `relative`, as an estimate from the rows that there were.

        The squared errors of n rows scatter around their mean, so that their sum is known to
        √(n · variance); its root, to half of that relatively. The variance of few rows says little:
        it is taken to be no less than the square of the mean.
        """
        if not self.squared:
            return 0.0
        of_mean = self.squared**2 / self.rows
        return 0.5 * float(np.sqrt(max(self.fourth - of_mean, of_mean))) / self.squared


def _unit_in_last_place(x: Array, dtype: str) -> Array:
    """Of each value in `dtype`."""
    bits, smallest = PRECISION[dtype]
    exponent = np.frexp(x)[1] - 1  # x = m · 2^exponent with 1 ≤ |m| < 2
    return np.ldexp(1.0, np.maximum(exponent, smallest) - bits)


@dataclass
class Choices:
    """Sets that were chosen by score, pooled: equal, a near tie, or wrong.

    Attributes
    ----------
    close : rows in which rounding could decide: the margin between the worst score that was to be
        chosen and the best that was not is within rounding of both.
    smallest_margin : the smallest of these margins.
    largest_lost : the largest margin that a choice which differs has lost.
    dtype_near_ties : rows in which the eager model in the backend's dtype chooses otherwise.
    impossible : how many of the wrong ones no scores could give: indices that cannot be chosen,
        twice the same, too few.
    """

    rows: int = 0
    near_ties: int = 0
    dtype_near_ties: int = 0
    wrong: int = 0
    close: int = 0
    smallest_margin: float = np.inf
    largest_lost: float = 0.0
    first_wrong: str = ""
    impossible: int = 0
    first_impossible: str = ""

    def add(
        self,
        found: Array,
        expected: Array,
        scores: tuple[Array, Array],
        noise: Array,
        place: str,
    ) -> NDArray[np.bool_]:
        """Compare rows of chosen indices (−1 is none); True where the sets are equal.

        Parameters
        ----------
        found, expected : integers [rows, k].
        scores : what was chosen by, [rows, candidates] each: exact ones, and as the eager model
            computes them in the backend's dtype; −inf for what cannot be chosen.
        noise : how far rounding moves a score, [rows].
        """
        exact, rounded = scores
        equal = np.ones(len(found), bool)
        margins = _margins(exact, expected)
        self.close += int((margins <= 2 * noise).sum())
        self.smallest_margin = min(self.smallest_margin, float(margins.min(initial=np.inf)))
        for row in range(len(found)):
            wrong = _unlike(found[row], expected[row], exact[row], rounded[row], noise[row])
            if wrong is None:
                continue
            problem, possible = wrong
            equal[row] = False
            self.largest_lost = max(self.largest_lost, _lost(found[row], expected[row], exact[row]))
            if not problem:
                self.near_ties += 1
                continue
            self.wrong += 1
            text = f"{place}, row {row}: {problem}"
            if possible:
                self.first_wrong = self.first_wrong or text
            else:
                self.impossible += 1
                self.first_impossible = self.first_impossible or text
        self.rows += len(equal)
        return equal


def score_noise(exact: Array, rounded: Array) -> float:
    """The largest difference of two arrays of scores, where they are finite."""
    finite = np.isfinite(exact) & np.isfinite(rounded)
    return float(np.abs(exact[finite] - rounded[finite]).max(initial=0.0))


def _margins(scores: Array, chosen: Array) -> Array:
    """Of each row: the smallest chosen score minus the largest other one that is finite; ∞ where
    there is no other.
    """
    taken = np.zeros(scores.shape, bool)
    row, column = np.nonzero(chosen >= 0)
    taken[row, chosen[row, column]] = True
    lowest = np.where(taken, scores, np.inf).min(-1)
    rest = np.where(taken, -np.inf, scores).max(-1, initial=-np.inf)
    return np.where(np.isfinite(rest) & np.isfinite(lowest), lowest - rest, np.inf)


def _lost(found: Array, expected: Array, exact: Array) -> float:
    """How much better the best choice that was missed is than the worst that was made instead."""
    within = found[(found >= 0) & (found < len(exact))]
    lost = np.setdiff1d(expected[expected >= 0], within)
    gained = np.setdiff1d(within, expected)
    if not len(lost) or not len(gained) or not np.isfinite(exact[gained]).all():
        return float("inf")
    return float(exact[lost].max() - exact[gained].min())


def _unlike(
    found: Array, expected: Array, exact: Array, rounded: Array, noise: float
) -> tuple[str, bool] | None:
    """None where the sets are equal; else what is wrong, "" for a near tie, and whether any scores
    could give such a choice.
    """
    chosen, wanted = found[found >= 0].tolist(), expected[expected >= 0].tolist()
    lost, gained = sorted(set(wanted) - set(chosen)), sorted(set(chosen) - set(wanted))
    what = f"expected {_short(lost)}, found {_short(gained)}"
    if (found < -1).any():  # what is not chosen is −1
        text = f"expected indices or -1, found {found.min()}: not among what can be chosen"
        return text, False
    if not lost and not gained and len(chosen) == len(wanted):
        return None
    if found.max() >= len(exact) or not np.isfinite(exact[gained]).all():
        return f"{what}: not among what can be chosen", False
    if len(gained) != len(lost) or len(set(chosen)) != len(chosen):
        return f"expected {len(wanted)} different choices, found {len(set(chosen))}", False
    margin = float(exact[lost].max() - exact[gained].min())
    if margin > 2 * noise:
        return f"{what}: scores {margin:.3g} apart, rounding explains {2 * noise:.3g}", True
    tied = {*exact[[*lost, *gained]].tolist()}, {*rounded[[*lost, *gained]].tolist()}
    if all(len(values) == 1 for values in tied):
        return f"{what}: an exact tie, which goes to the smaller index", True
    return "", True


def _short(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:6])) + (" …" if len(indices) > 6 else "") or "none"
