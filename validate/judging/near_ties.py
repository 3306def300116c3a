"""Whether a backend has more near ties than the eager model in its dtype, in a block or in all of
them up to it.

They are counted twice. On the exact model's input it is the block's own scores that are off. Fed
what came out of the blocks before, it is what has gathered that parts a chain from the exact model;
there only tokens count in which neither had parted, as all that follows a parting is another text.
A few more in every block are many in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from glm_trt.validate.judging.choices import most_near_ties
from glm_trt.validate.judging.limits import ALLOWED_RATIO

if TYPE_CHECKING:
    from glm_trt.validate.judging.measure import BlockResult

ISOLATED, PROPAGATED = "near ties", "near ties of its own run"
ALL_SO_FAR = "in this block and those before it"


class Excess(NamedTuple):
    """Too many near ties: of which output, what to say, which ratio would have allowed them."""

    output: str
    text: str
    ratio: float


class NearTies:
    """Judges blocks one after another, in the order of a pass."""

    def __init__(self, dtype: str) -> None:
        self._ratio = ALLOWED_RATIO[dtype]
        self._sums: dict[tuple[str, str], tuple[int, int]] = {}
        self._said: set[tuple[str, str]] = set()
        self._behind_a_fault = False

    def faulty(self) -> None:
        """The block that was added last is wrong: what later ones make of its output is its doing,
        so near ties of their own runs are not held against them.
        """
        self._behind_a_fault = True

    def add(self, result: BlockResult) -> Iterator[Excess]:
        """What there is too much of in the next block; in the sum, where it is first too much."""
        for name, what, found, dtype in _counts(result):
            if what == PROPAGATED and self._behind_a_fault:
                continue
            if excess := self._excess(name, what, found, dtype):
                yield excess  # and no part of the sum, which would say so again
                continue
            key = name, what
            so_far, dtype_so_far = self._sums.get(key, (0, 0))
            self._sums[key] = found, dtype = so_far + found, dtype_so_far + dtype
            if key not in self._said and (
                excess := self._excess(name, f"{what} {ALL_SO_FAR}", found, dtype)
            ):
                self._said.add(key)
                yield excess

    def _excess(self, name: str, what: str, found: int, dtype: int) -> Excess | None:
        most = most_near_ties(dtype, self._ratio)
        if found <= most:
            return None
        text = f"{found} {what}, allowed {most}: the dtype has {dtype}"
        return Excess(name, text, self._ratio * found / most)


def _counts(result: BlockResult) -> Iterator[tuple[str, str, int, int]]:
    """Of each choice: its output, what is counted, that of the backend and of the dtype."""
    for name, choices in result.choices.items():
        yield name, ISOLATED, choices.near_ties, choices.dtype_near_ties
    for name, parted in result.parted.items():
        yield name, PROPAGATED, parted.found, parted.rounded
