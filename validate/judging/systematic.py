"""Errors that lie in one direction: a gain or a bias, far below what rounding scatters.

Rounding errors of n elements average to 1/√n of themselves; a wrong scale does not. So errors are
regressed, through the origin, on what the exact model made: on the output itself, and of a
layer's hidden state on what the layer adds to it and on each part of that, which the residual
would hide. What the dtype costs is measured likewise, with its scatter from token to token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]

# What the exact model's layers add to the hidden state, recorded under this and the part's name.
ADDED = "added_by_"
UPDATE = "update"
ITSELF = "output"
BIAS = "bias"
CHANNEL = "bias of channel"
# So far the slope of a backend may be from those of the exact and of the rounded model, in standard
# errors of the latter. Of 18,000 slopes of faultless bundles, none took more than 1.4 in half
# precision and 2.5 in float32. One is known that takes 6.1: a channel's bias behind an attention
# with biases, in bfloat16. Its cause is not measured yet; what is nearly constant may be rounded
# alike for every token, and a standard error supposes that tokens are independent.
STANDARD_ERRORS = 5.0
# One rounding of what sums are made in: elementary functions differ by it between libraries, and
# positions that come again are rounded alike each time.
LEAST = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-24, "bfloat16": 2.0**-24}
# Of fewer, no scatter is known.
FEWEST_ROWS = 16


class Slope(NamedTuple):
    """Of what errors are multiples: the slope of the backend's, of the dtype's, and the standard
    error of the latter.
    """

    found: float
    rounded: float
    uncertainty: float


@dataclass
class Regression:
    """Sums over errors e on one regressor x: x², e·x of the backend and of the dtype.

    `rounded_rows` and `rounded_elements` are the sums of squares of Σ e·x of each row, and of e·x
    of each element: errors of a row may go together, and of few rows the elements say more.
    """

    squared: float = 0.0
    found: float = 0.0
    rounded: float = 0.0
    rounded_rows: float = 0.0
    rounded_elements: float = 0.0

    def add(self, found: Array, rounded: Array, x: Array) -> None:
        """Errors of the backend and of the dtype, and x, [rows, width] each."""
        product = rounded * x
        self.squared += float(np.square(x).sum())
        self.found += float((found * x).sum())
        self.rounded += float(product.sum())
        self.rounded_rows += float(np.square(product.sum(-1)).sum())
        self.rounded_elements += float(np.square(product).sum())

    def slope(self, scale: float = 1.0) -> Slope | None:
        """Slopes in units of `scale`; None where x is zero throughout."""
        if not self.squared:
            return None
        scatter = max(self.rounded_rows, self.rounded_elements) ** 0.5
        of = self.squared * scale
        return Slope(self.found / of, self.rounded / of, scatter / of)


@dataclass
class Systematic:
    """The regressions of one output in one phase, pooled over `rows`, by regressor; sums of the
    errors of each channel, and of the squares of the dtype's, where channels are looked at.
    """

    rows: int = 0
    regressions: dict[str, Regression] = field(default_factory=dict)
    found: list[float] = field(default_factory=list)
    rounded: list[float] = field(default_factory=list)
    rounded_squared: list[float] = field(default_factory=list)

    def add(
        self, tensors: Arrays, regressors: Arrays, rows: Array | None, *, channels: bool
    ) -> None:
        """Pool one tensor of the three chains [rows..., width]; `rows` False leaves a row out, and
        so does a value that is not finite.

        `regressors` are of the tensor's shape, the first the one that a bias is relative to.
        """
        exact = tensors["exact"].astype(np.float64)
        found, rounded = (tensors[name].astype(np.float64) - exact for name in ("found", "rounded"))
        kept = np.isfinite(found).all(-1) & np.isfinite(rounded).all(-1)
        kept &= True if rows is None else rows
        found, rounded = found[kept], rounded[kept]
        for name, x in (regressors | {BIAS: np.ones_like(exact)}).items():
            of = x[kept].astype(np.float64)
            self.regressions.setdefault(name, Regression()).add(found, rounded, of)
        self.rows += len(found)
        if channels:
            self.found = _added(self.found, found)
            self.rounded = _added(self.rounded, rounded)
            self.rounded_squared = _added(self.rounded_squared, np.square(rounded))

    def slopes(self) -> Iterator[tuple[str, Slope]]:
        """By name: gains of what errors were held against; the bias, and that of each channel,
        relative to the root mean square of the first of them.
        """
        first = next(iter(self.regressions.values()), Regression())
        if not first.squared or self.rows < FEWEST_ROWS:
            return
        scale = (first.squared / self.regressions[BIAS].squared) ** 0.5
        for name, regression in self.regressions.items():
            slope = regression.slope(scale if name == BIAS else 1.0)
            if slope is not None:
                yield name, slope
        of = self.rows * scale
        channels = zip(self.found, self.rounded, self.rounded_squared, strict=True)
        for i, (found, rounded, squared) in enumerate(channels):
            yield f"{CHANNEL} {i}", Slope(found / of, rounded / of, squared**0.5 / of)


def _added(sums: list[float], rows: Array) -> list[float]:
    of: Array = rows.sum(0)
    return (of + sums if sums else of).tolist()


def regressors_of(name: str, exact: Array, scores: Arrays) -> Arrays:
    """What errors of output `name` are held against: the output itself; of a layer's hidden state
    what the layer adds to it, all together and by its parts, as far as they were recorded.
    """
    parts: Arrays = {
        key.removeprefix(ADDED): added.reshape(exact.shape)
        for key, added in scores.items()
        if name == "hidden_out" and key.startswith(ADDED)
    }
    if not parts:
        return {ITSELF: exact}
    total = np.asarray(sum(part.astype(np.float64) for part in parts.values()))
    return {UPDATE: total} | parts


class Judged(NamedTuple):
    """A slope, the least and the largest that is allowed, and how much of that it takes."""

    name: str
    slope: Slope
    lowest: float
    highest: float
    share: float


def judged(systematic: Systematic, dtype: str, ratio: float) -> list[Judged]:
    """Every gain and bias; of the channels the one that takes most of what it is allowed.

    A backend may be anywhere between the exact model and the eager one in its dtype, and beyond
    by the standard errors of the latter, all `ratio` times. Its own scatter allows it nothing.
    """
    entries = [_judged(name, slope, dtype, ratio) for name, slope in systematic.slopes()]
    channels = [entry for entry in entries if entry.name.startswith(CHANNEL)]
    others = [entry for entry in entries if not entry.name.startswith(CHANNEL)]
    return others + ([max(channels, key=lambda entry: entry.share)] if channels else [])


def _judged(name: str, slope: Slope, dtype: str, ratio: float) -> Judged:
    beyond = ratio * STANDARD_ERRORS * slope.uncertainty + LEAST[dtype]
    lowest = min(0.0, ratio * slope.rounded) - beyond
    highest = max(0.0, ratio * slope.rounded) + beyond
    share = slope.found / (highest if slope.found > 0 else lowest)
    return Judged(name, slope, lowest, highest, share)
