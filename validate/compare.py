"""Comparing arrays and discrete choices with what they should be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Difference:
    """How far found values are from expected ones, pooled over many calls of `add`.

    `relative` is the L2 norm of all differences over that of all expected values.
    """

    squared: float = 0.0
    squared_expected: float = 0.0
    elements: int = 0
    non_finite: int = 0
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
        self.squared += float(np.square(difference).sum())
        self.squared_expected += float(np.square(expected[kept]).sum())
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


@dataclass
class Choices:
    """Sets that were chosen by score, pooled: equal, a near tie, or wrong."""

    rows: int = 0
    near_ties: int = 0
    wrong: int = 0
    first_wrong: str = ""

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
        for row in range(len(found)):
            problem = _unlike(found[row], expected[row], exact[row], rounded[row], noise[row])
            if problem is None:
                continue
            equal[row] = False
            if not problem:
                self.near_ties += 1
                continue
            self.wrong += 1
            self.first_wrong = self.first_wrong or f"{place}, row {row}: {problem}"
        self.rows += len(equal)
        return equal


def score_noise(exact: Array, rounded: Array) -> float:
    """The largest difference of two arrays of scores, where they are finite."""
    finite = np.isfinite(exact) & np.isfinite(rounded)
    return float(np.abs(exact[finite] - rounded[finite]).max(initial=0.0))


def _unlike(
    found: Array, expected: Array, exact: Array, rounded: Array, noise: float
) -> str | None:
    """None where the sets are equal, "" for a near tie, else what is wrong."""
    chosen, wanted = found[found >= 0].tolist(), expected[expected >= 0].tolist()
    lost, gained = sorted(set(wanted) - set(chosen)), sorted(set(chosen) - set(wanted))
    if not lost and not gained and len(chosen) == len(wanted):
        return None
    what = f"expected {_short(lost)}, found {_short(gained)}"
    if found.min() < -1 or found.max() >= len(exact) or not np.isfinite(exact[gained]).all():
        return f"{what}: not among what can be chosen"
    if len(gained) != len(lost) or len(set(chosen)) != len(chosen):
        return f"expected {len(wanted)} different choices, found {len(set(chosen))}"
    margin = float(exact[lost].max() - exact[gained].min())
    if margin > 2 * noise:
        return f"{what}: scores {margin:.3g} apart, rounding explains {2 * noise:.3g}"
    tied = {*exact[[*lost, *gained]].tolist()}, {*rounded[[*lost, *gained]].tolist()}
    if all(len(values) == 1 for values in tied):
        return f"{what}: an exact tie, which goes to the smaller index"
    return ""


def _short(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:6])) + (" …" if len(indices) > 6 else "") or "none"
