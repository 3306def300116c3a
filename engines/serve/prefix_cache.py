"""States of sequences that have ended, for prompts that begin with their tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from glm_trt.engines.python.request import Snapshot


class PrefixCache:
    """Snapshots, those that were of use last kept longest. Not for several threads.

    Parameters
    ----------
    capacity : bytes of all states together; 0 keeps none.
    predict : whether drafts are made, which have states of their own.
    """

    def __init__(self, capacity: int, predict: bool) -> None:
        self.capacity, self._predict = capacity, predict
        self.held = 0
        self._snapshots: OrderedDict[tuple[int, ...], Snapshot] = OrderedDict()

    def add(self, snapshot: Snapshot) -> None:
        """Keep it, in the place of those that are a part of it and of the eldest."""
        size = size_of(snapshot)
        if size > self.capacity:
            return
        for tokens in [x for x in self._snapshots if snapshot.tokens[: len(x)] == x]:
            self._drop(tokens)
        while self.held + size > self.capacity:
            self._drop(next(iter(self._snapshots)))
        self._snapshots[snapshot.tokens] = snapshot
        self.held += size

    def find(self, prompt: Sequence[int]) -> Snapshot | None:
        """That from which most of the prompt's tokens need not be run; None if none is of use."""
        found = [(x.reusable(prompt, self._predict)[0], x) for x in self._snapshots.values()]
        most, best = max(found, key=lambda pair: pair[0], default=(0, None))
        if best is None or most == 0:
            return None
        self._snapshots.move_to_end(best.tokens)
        return best

    def _drop(self, tokens: tuple[int, ...]) -> None:
        self.held -= size_of(self._snapshots.pop(tokens))


def size_of(snapshot: Snapshot) -> int:
    """Bytes of its states."""
    blocks = snapshot.state.arrays.values()
    return sum(array.nbytes for arrays in blocks for array in arrays.values())
