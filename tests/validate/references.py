"""The yardstick shared by tests: an eager block of one checkpoint, run once on each input.

A fault in a bundle changes neither the checkpoint nor what the eager model makes of it, so
the walks of the exact model, and of the same in the dtype of a backend, are those of all faults.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.export.bundle.format import Block
from glm_trt.validate.running.reference import OWN_WEIGHTS, EagerBlock, Reference

Arrays = dict[str, NDArray[Any]]

_BLOCK = Reference.block
_MADE: dict[tuple[str, ...], tuple[Arrays, Arrays]] = {}


class RememberedBlock:
    """As `EagerBlock`; loaded when there is an input that no test had before."""

    def __init__(self, reference: Reference, block: Block, dtype: str, absorbed: bool) -> None:
        self.reference, self.of, self.dtype, self.absorbed = reference, block, dtype, absorbed
        self.key = (reference.source, block.name, dtype, str(absorbed))
        self.loaded: EagerBlock | None = None
        self.scores: Arrays = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        key = (*self.key, digest(inputs))
        if key not in _MADE:
            if self.loaded is None:
                self.loaded = _BLOCK(self.reference, self.of, self.dtype, absorbed=self.absorbed)
            _MADE[key] = self.loaded(inputs), self.loaded.scores
        outputs, self.scores = _MADE[key]
        return {name: array.copy() for name, array in outputs.items()}


def digest(inputs: Arrays) -> str:
    """Of names, dtypes, shapes and bytes."""
    found = hashlib.blake2b()
    for name, array in sorted(inputs.items()):
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).view(np.uint8))
    return found.hexdigest()


def remembered_block(
    reference: Reference, block: Block, dtype: str, *, absorbed: bool = False
) -> EagerBlock | RememberedBlock:
    """In the place of `Reference.block`; a bundle that is its own yardstick is not remembered."""
    if reference.source == OWN_WEIGHTS:
        return _BLOCK(reference, block, dtype, absorbed=absorbed)
    return RememberedBlock(reference, block, dtype, absorbed)
