"""Writing a block's weights in the very layout that a runtime binds, one tensor at a time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from glm_trt.model import bindings as b
from glm_trt.model.checkpoint import Checkpoint
from glm_trt.model.files import write_atomically

_FORMAT_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def materialize_block(
    bindings: list[b.Binding], checkpoint: Checkpoint, directory: Path, name: str
) -> list[b.Binding]:
    """Write `directory/name.safetensors`; returns bindings that read it without transformation.

    No more than one bound tensor is in memory. A file that is there already is whole, as files
    are renamed into place, and is kept.
    """
    stored = [
        replace(x, tensors=(f"{name}.{x.name}",), transform="none", arguments={}) for x in bindings
    ]
    path = directory / f"{name}.safetensors"
    if path.is_file():
        return stored
    header: dict[str, Any] = {}
    offset = 0
    for old, new in zip(bindings, stored, strict=True):
        dtype = old.dtype or checkpoint.info(old.tensors[0].format(expert=0)).dtype
        size = math.prod(old.shape) * b.NUMPY_DTYPES[dtype].itemsize
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
            file.write(b.bound_tensor(binding, checkpoint).reshape(-1).view(np.uint8).data)

    write_atomically(path, write)
    return stored
