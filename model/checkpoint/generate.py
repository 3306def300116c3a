"""Writing checkpoints of the presets: with random weights, or of nothing but holes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from glm_trt.model.checkpoint.presets import preset_config
from glm_trt.model.checkpoint.read import INDEX_FILE, SINGLE_FILE
from glm_trt.model.checkpoint.tensors import TensorSpec, checkpoint_tensors, stored_tensors
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import CheckpointError
from glm_trt.model.files import explain, sync_directory, write_atomically

SHARD_BYTES = 5_000_000_000  # at most, as transformers cuts a checkpoint
# By a spec's dtype: its name in safetensors, and how NumPy has it.
_DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float32": ("F32", np.dtype(np.float32)),
    "float8_e4m3fn": ("F8_E4M3", np.dtype(ml_dtypes.float8_e4m3fn)),
    "uint8": ("U8", np.dtype(np.uint8)),
}
_CHUNK = 1 << 24  # numbers made at once
_HEADER_BLOCKS = 1 << 20  # bytes that a file of holes may take all the same


@dataclass(frozen=True)
class Written:
    """What was written. `disk_bytes` is what the files take, of the `bytes` that they claim."""

    directory: Path
    layers: int
    tensors: int
    files: int
    bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class CheckpointOptions:
    """What of a preset to write.

    Attributes
    ----------
    preset, scale, precision, layers, kind, with_mtp : as in `preset_config`.
    random : random weights that keep activations near 1, in their full size; else zeros that take
        no space. None means at scale "tiny".
    seed : of the random weights; the same seed gives the same bytes.
    """

    preset: str
    scale: str = "tiny"
    precision: str = "bf16"
    layers: int | None = None
    kind: str | None = None
    with_mtp: bool = True
    random: bool | None = None
    seed: int = 0


def make_checkpoint(options: CheckpointOptions, output: Path) -> Written:
    """Write the checkpoint `output`, which appears under its name only when it is whole.

    Raises
    ------
    ConfigError
        If the preset has no such layers.
    CheckpointError
        If `output` exists and is not empty, or its file system keeps no holes.
    BundleError
        If the disk is full or a file cannot be written.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise CheckpointError(
            f"{output}: exists and is not an empty directory; it is left as it is"
        )
    data = preset_config(
        options.preset, options.scale, options.precision, options.layers, options.kind,
        options.with_mtp,
    )  # fmt: skip
    config = ModelConfig.from_dict(data, options.preset)
    table = list(stored_tensors(checkpoint_tensors(config), config.quantization))
    output = Path(os.path.abspath(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        write_atomically(partial / "config.json", _json(data))
        if options.scale == "tiny" if options.random is None else options.random:
            _check_space(output, table)
            _write_random(partial, table, options.seed)
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


def _check_space(output: Path, table: list[TensorSpec]) -> None:
    needed, free = sum(map(_size, table)), shutil.disk_usage(output.parent).free
    if needed > free:
        raise CheckpointError(
            f"{output}: random weights need {needed / 1e6:,.1f} MB, only {free / 1e6:,.1f} MB are "
            "free"
        )


def _write_random(directory: Path, table: list[TensorSpec], seed: int) -> None:
    def write(file: BinaryIO, shard: list[TensorSpec]) -> None:
        file.write(_header(shard))
        for spec in shard:
            for values in _random(spec, seed):
                file.write(values.astype(_DTYPES[spec.dtype][1], copy=False).tobytes())

    _write_shards(directory, table, write)


def _random(spec: TensorSpec, seed: int) -> Iterator[NDArray[Any]]:
    """Weights of a size that keeps activations near 1, in chunks; they depend on the tensor's name,
    shape and dtype, and the seed, alone.
    """
    name, shape = spec.name, spec.shape
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    for start in range(0, spec.elements, _CHUNK):
        count = min(_CHUNK, spec.elements - start)
        if name.endswith(".weight") and spec.dtype in ("float8_e4m3fn", "uint8"):
            codes = np.frombuffer(generator.bytes(count), np.uint8)
            if spec.dtype == "float8_e4m3fn":
                codes = np.where(codes & 0x7F == 0x7F, 0, codes).astype(np.uint8)  # no NaN
            yield codes.view(_DTYPES[spec.dtype][1])
        elif name.endswith(".weight_scale_inv"):  # of random codes: a mean square of about 150²
            yield generator.uniform(0.5, 1.5, count) / (150 * (128 * shape[-1]) ** 0.5)
        elif name.endswith(".weight_scale"):  # likewise, 3², and 2¹⁰ by the global scale
            yield generator.uniform(0.5, 1.5, count) * 1024 / (16 * shape[-1]) ** 0.5
        elif name.endswith(".weight_scale_2"):
            yield np.array(1 / (3 * 1024))
        elif name.endswith("A_log"):
            yield np.log(generator.uniform(0.05, 1.0, count))  # a memory of a few tokens to dozens
        else:
            values = generator.standard_normal(count)
            if name.endswith("norm.weight"):
                yield 1.0 + 0.1 * values
            elif "embed_tokens" in name:
                yield values
            else:
                yield values * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)


def _write_holes(directory: Path, table: list[TensorSpec]) -> None:
    """Only headers are written: what follows is a hole of zeros."""

    def write(file: BinaryIO, shard: list[TensorSpec]) -> None:
        header = _header(shard)
        file.write(header)
        file.truncate(len(header) + sum(map(_size, shard)))

    for path in _write_shards(directory, table, write):
        if path.stat().st_blocks * 512 > max(path.stat().st_size // 2, _HEADER_BLOCKS):
            raise CheckpointError(
                f"{directory.parent}: its file system keeps no holes in files, so this checkpoint "
                "would take its full size; name a place on another"
            )


def _write_shards(
    directory: Path,
    table: list[TensorSpec],
    write: Callable[[BinaryIO, list[TensorSpec]], None],
) -> list[Path]:
    """One file; or shards and their index, where it would be too large."""
    shards = list(_shards(table))
    if len(shards) == 1:
        write_atomically(directory / SINGLE_FILE, lambda file: write(file, table))
        return [directory / SINGLE_FILE]
    paths, weight_map = [], {}
    for number, shard in enumerate(shards, 1):
        path = directory / f"model-{number:05}-of-{len(shards):05}.safetensors"

        def write_shard(file: BinaryIO, shard: list[TensorSpec] = shard) -> None:
            write(file, shard)

        write_atomically(path, write_shard)
        paths.append(path)
        weight_map.update({spec.name: path.name for spec in shard})
    total = sum(map(_size, table))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_atomically(directory / INDEX_FILE, _json(index))
    return paths


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
