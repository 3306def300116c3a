"""Following a fault of a runtime into its layers.

Block by block the backend was right, so each pass of its runtime is held against the same blocks
run one by one, on states that this module carries. Both run the same kernels: up to the layer where
the fault enters they differ by roundings, behind it by what it does. That layer is the one in which
the difference grows most.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.python.backend import Backend, Kept
from glm_trt.validate.judging.limits import UNIT_ROUNDOFF
from glm_trt.validate.running.probes import fed
from glm_trt.validate.running.runtime_check import runtime_observations
from glm_trt.validate.running.walk import Flow, _pass_on, cast

Array = NDArray[Any]
Arrays = dict[str, Array]
# Less growth than this is what blocks do to roundings.
LEAST_GROWTH = 1e3
# Beyond what a batch is to hold: padding is written too, in passes of up to so many tokens.
SPARE = 512


@dataclass(frozen=True)
class Parting:
    """Where a runtime parts from its blocks: relative L2 differences of the hidden state before
    and behind the block, and the pass, counted from 1 over all that was run.
    """

    block: str
    number: int
    shape: tuple[int, ...]
    past: list[int]
    before: float
    behind: float

    @property
    def growth(self) -> float:
        """How many times larger the difference is behind the block."""
        return self.behind / self.before if math.isfinite(self.before) else 0.0


def find_parting(backend: Backend, flows: list[Flow]) -> Parting | None:
    """The block of the runtime that parts from itself run alone; None if none does, or if the
    backend does not show what the blocks of a pass make.
    """
    if not hasattr(backend, "watch"):
        return None
    followed = _Followed(backend)
    for _ in runtime_observations(typing.cast(Backend, followed), flows):
        pass
    found = max(followed.partings, key=lambda parting: parting.growth, default=None)
    return found if found is not None and found.growth >= LEAST_GROWTH else None


class _Followed:
    """A backend, of whose passes each block is run alone too."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.bundle, self.dtype = backend, backend.bundle, backend.dtype
        self.partings: list[Parting] = []

    def most_tokens(self, length: int) -> int:
        return min(int(self.backend.most_tokens(length)), SPARE)

    def batch(self, rows: int, capacity: int = 1) -> _FollowedBatch:
        return _FollowedBatch(self, rows, capacity)


class _FollowedBatch:
    def __init__(self, followed: _Followed, rows: int, capacity: int) -> None:
        self._of, self._batch = followed, followed.backend.batch(rows, capacity)
        self._past = np.zeros(rows, np.int64)
        self._states = {
            block.name: {
                spec.name: np.zeros(spec.shape(rows, capacity + SPARE))
                for spec in followed.bundle.states(block)
            }
            for block in followed.bundle.blocks
        }

    def step(self, ids: Array, lengths: Array | None = None, *, logits: Kept = "last") -> Array:
        seen: dict[str, Arrays] = {}
        self._of.backend.watch = seen.__setitem__
        try:
            made: Array = self._batch.step(ids, lengths, logits=logits)
        finally:
            self._of.backend.watch = None
        appended = np.full(len(ids), ids.shape[1]) if lengths is None else np.asarray(lengths)
        self._follow(ids, appended, seen)
        self._past = self._past + appended
        return made

    def _follow(self, ids: Array, appended: Array, seen: dict[str, Arrays]) -> None:
        bundle, dtype = self._of.bundle, self._of.dtype
        number = 1 + (self._of.partings[-1].number if self._of.partings else 0)
        counted = np.arange(ids.shape[1]) < appended[:, None]
        values: Arrays = {"input_ids": ids, "past_lengths": self._past, "lengths": appended}
        before = UNIT_ROUNDOFF[dtype]
        for block in bundle.blocks[:-1]:
            states = self._states[block.name]
            inputs = cast(fed(bundle.config, block, values, states), dtype)
            outputs = self._of.backend.run_block(block, inputs)
            self._states[block.name] = {name: outputs[f"{name}_out"] for name in states}
            _pass_on(block, values, outputs)
            behind = _relative(
                seen[block.name]["hidden_out"][counted], outputs["hidden_out"][counted]
            )
            self._of.partings.append(
                Parting(block.name, number, ids.shape, self._past.tolist(), before, behind)
            )
            before = max(behind, UNIT_ROUNDOFF[dtype]) if math.isfinite(behind) else math.inf


def _relative(found: Array, expected: Array) -> float:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    difference = float(np.linalg.norm(found - expected))
    size = float(np.linalg.norm(expected))
    if not math.isfinite(difference):
        return math.inf
    return difference / size if size else difference
