"""Writing checkpoints of the presets: small ones with random weights, and ones of the real size
that hold nothing but holes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from glm_trt.model.checkpoint import INDEX_FILE, SINGLE_FILE
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import CheckpointError
from glm_trt.model.files import explain, sync_directory, write_atomically
from glm_trt.model.presets import preset_config
from glm_trt.model.tensors import TensorSpec, checkpoint_tensors

SHARD_BYTES = 5_000_000_000  # at most, as transformers cuts a checkpoint
# By a spec's dtype: its name in safetensors, and how NumPy has it.
_DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float32": ("F32", np.dtype(np.float32)),
}


@dataclass(frozen=True)
class Written:
    """What was written. `disk_bytes` is what the files take, of the `bytes` that they claim."""

    directory: Path
    layers: int
    tensors: int
    files: int
    bytes: int
    disk_bytes: int


def make_checkpoint(preset: str, scale: str, output: Path, seed: int = 0) -> Written:
    """Write the checkpoint `output`, which appears under its name only when it is whole.

    Parameters
    ----------
    preset, scale : as in `preset_config`. At scale "tiny" the weights are random and keep
        activations near 1; at the others they are zeros that take no space.
    seed : of the random weights; the same seed gives the same bytes.

    Raises
    ------
    CheckpointError
        If `output` exists and is not empty, or its file system keeps no holes.
    BundleError
        If the disk is full or a file cannot be written.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise CheckpointError(
            f"{output}: exists and is not an empty directory; it is left as it is"
        )
    data = preset_config(preset, scale)
    config = ModelConfig.from_dict(data, preset)
    table = list(checkpoint_tensors(config))
    output = Path(os.path.abspath(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        write_atomically(partial / "config.json", _json(data))
        if scale == "tiny":
            _write_random(partial / SINGLE_FILE, table, seed)
        else:
            _write_holes(partial, table)
        sizes = [path.stat() for path in partial.glob("*.safetensors")]
        partial.chmod(0o755)  # mkdtemp's own is for its user alone
        partial.replace(output)
    except OSError as error:
        raise CheckpointError(explain(output, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_directory(output.parent)
    return Written(
        output, config.num_hidden_layers, len(table), len(sizes),
        sum(size.st_size for size in sizes), sum(size.st_blocks * 512 for size in sizes),
    )  # fmt: skip


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


def _size(spec: TensorSpec) -> int:
    return spec.elements * _DTYPES[spec.dtype][1].itemsize


def _header(table: list[TensorSpec]) -> bytes:
    """The head of a safetensors file of these tensors, in their order; data follows it."""
    entries, offset = {}, 0
    for spec in table:
        end = offset + _size(spec)
        entries[spec.name] = {
            "dtype": _DTYPES[spec.dtype][0],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_random(path: Path, table: list[TensorSpec], seed: int) -> None:
    def write(file: BinaryIO) -> None:
        file.write(_header(table))
        for spec in table:
            values = _random(spec.name, spec.shape, seed)
            file.write(values.astype(_DTYPES[spec.dtype][1]).tobytes())

    write_atomically(path, write)


def _random(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Weights of a size that keeps activations near 1; they depend on name and seed alone."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("A_log"):
        return np.log(generator.uniform(0.05, 1.0, shape))  # a memory of a few tokens to dozens
    values = generator.standard_normal(shape)
    if name.endswith("norm.weight"):
        return 1.0 + 0.1 * values
    if "embed_tokens" in name:
        return values
    return values * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)


def _write_holes(directory: Path, table: list[TensorSpec]) -> None:
    """Shards and their index. Only headers are written: what follows is a hole of zeros."""
    shards = list(_shards(table))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        path = directory / f"model-{number:05}-of-{len(shards):05}.safetensors"
        header = _header(shard)
        size = len(header) + sum(map(_size, shard))

        def write(file: BinaryIO, header: bytes = header, size: int = size) -> None:
            file.write(header)
            file.truncate(size)

        write_atomically(path, write)
        if path.stat().st_blocks * 512 > size // 2:
            raise CheckpointError(
                f"{directory.parent}: its file system keeps no holes in files, so this checkpoint "
                "would take its full size; name a place on another"
            )
        weight_map.update({spec.name: path.name for spec in shard})
    total = sum(map(_size, table))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_atomically(directory / INDEX_FILE, _json(index))


def _shards(table: list[TensorSpec]) -> Iterable[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    filled = 0
    for spec in table:
        size = _size(spec)
        if shard and filled + size > SHARD_BYTES:
            yield shard
            shard, filled = [], 0
        shard.append(spec)
        filled += size
    yield shard
