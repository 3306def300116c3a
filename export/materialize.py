"""Writing a block's weights in the very layout that a runtime binds, one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.files import write_atomically

_FORMAT_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}


def materialize_block(
    bindings: tuple[b.Binding, ...], checkpoint: Checkpoint, directory: Path, name: str
) -> tuple[b.Binding, ...]:
    """Write `directory/name.safetensors`; returns bindings that read it without transformation.

    No more than one tensor is in memory, and of stacked experts one. A file that is there already
    is whole, as files are renamed into place, and is kept.
    """
    stored = tuple(
        replace(x, tensors=(f"{name}.{x.name}",), transform="none", arguments={}) for x in bindings
    )
    path = directory / f"{name}.safetensors"
    if path.is_file():
        return stored
    header: dict[str, Any] = {}
    offset = 0
    for old, new in zip(bindings, stored, strict=True):
        dtype = b.bound_dtype(old, checkpoint)
        size = bound_bytes(old, checkpoint)
        header[new.tensors[0]] = {
            "dtype": _FORMAT_NAMES[dtype],
            "shape": list(old.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # data starts at a multiple of 64 bytes

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for binding in bindings:
            for array in _pieces(binding, checkpoint):
                file.write(array.reshape(-1).view(np.uint8).data)

    write_atomically(path, write)
    return stored


def bound_bytes(binding: b.Binding, checkpoint: Checkpoint) -> int:
    """Bytes of the bound tensor in the dtype in which it is written."""
    itemsize = b.NUMPY_DTYPES[b.bound_dtype(binding, checkpoint)].itemsize
    return math.prod(binding.shape) * itemsize


def _pieces(binding: b.Binding, checkpoint: Checkpoint) -> Iterator[NDArray[Any]]:
    """The bound tensor in the order of its bytes; what was read of the checkpoint is let go."""
    if binding.transform != "stack_experts":
        yield b.bound_tensor(binding, checkpoint)
        for name in binding.tensors:
            checkpoint.release(name)
        return
    dtype = b.NUMPY_DTYPES[b.bound_dtype(binding, checkpoint)]
    for expert in range(binding.arguments["experts"]):
        for part in b.expert_parts(binding, checkpoint, expert):
            yield part.astype(dtype, copy=False)
        b.release_expert(binding, checkpoint, expert)
