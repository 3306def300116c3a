"""One safetensors file, mapped: header checked strictly, tensors as read-only views.

The safetensors library copies (NumPy) or needs torch; a runtime needs neither, so the format
(8-byte little-endian header length, JSON header, data) is read here.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from glm_trt.model.errors import CheckpointError
from glm_trt.model.files import what_it_is
from glm_trt.model.strict_json import RepeatedName, parse_json

MAX_HEADER_BYTES = 100_000_000
MAX_BEGINNING = 64  # bytes that tell what a file is
SAMPLES, SAMPLE_BYTES = 16, 4096
_FIELDS = ("dtype", "shape", "data_offsets")
_DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "F32": ("float32", np.dtype(np.float32)),
    "F16": ("float16", np.dtype(np.float16)),
    "BF16": ("bfloat16", np.dtype(ml_dtypes.bfloat16)),
    "F8_E4M3": ("float8_e4m3fn", np.dtype(ml_dtypes.float8_e4m3fn)),
    "U8": ("uint8", np.dtype(np.uint8)),
    "I8": ("int8", np.dtype(np.int8)),
    "F64": ("float64", np.dtype(np.float64)),
    "F8_E5M2": ("float8_e5m2", np.dtype(ml_dtypes.float8_e5m2)),
    "F8_E8M0": ("float8_e8m0fnu", np.dtype(ml_dtypes.float8_e8m0fnu)),
    "I64": ("int64", np.dtype(np.int64)),
    "I32": ("int32", np.dtype(np.int32)),
    "I16": ("int16", np.dtype(np.int16)),
    "U32": ("uint32", np.dtype(np.uint32)),
    "BOOL": ("bool", np.dtype(np.bool_)),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `offset` is in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * _DTYPES_BY_NAME[self.dtype].itemsize


def _sizes(value: Any, count: int | None = None) -> TypeGuard[list[int]]:
    """Whether `value` is a list of whole numbers of 0 or more, `count` of them if that is given."""
    if not isinstance(value, list) or (count is not None and len(value) != count):
        return False
    return all(type(n) is int and n >= 0 for n in value)


class SafetensorsFile:
    """The tensors of `path`. Raises `CheckpointError` naming file and tensor if malformed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size_bytes = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(8)
                length = int.from_bytes(head, "little")
                if len(head) < 8 or length > min(MAX_HEADER_BYTES, self.size_bytes - 8):
                    if known := what_it_is(head + file.read(MAX_BEGINNING)):
                        raise CheckpointError(f"{path}: {known}")
                    raise CheckpointError(
                        f"{path}: header of {length} bytes does not fit a file of "
                        f"{self.size_bytes} bytes: truncated, or not safetensors"
                    )
                header = file.read(length)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error
        self.header_sha256 = hashlib.sha256(head + header).hexdigest()
        self.tensors = self._parse(header, 8 + length)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of the mapped file; nothing is copied."""
        info = self.tensors[name]
        data = self._bytes[info.offset : info.offset + info.bytes]
        return data.view(_DTYPES_BY_NAME[info.dtype]).reshape(info.shape)

    def sample_sha256(self) -> str:
        """SHA-256 of some of the data: `SAMPLES` pages at even distances, the last one included. It
        notices other weights under the same header, not every changed byte.
        """
        digest = hashlib.sha256()
        last = max(self.size_bytes - SAMPLE_BYTES, 0)
        with self.path.open("rb") as file:
            for i in range(SAMPLES):
                file.seek(last * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()

    def release(self, name: str) -> None:
        """Let go of the tensor's memory: the next to read it finds it in the system's cache, or
        reads the file again.
        """
        info = self.tensors[name]
        begin = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE  # pages that are its own
        end = (info.offset + info.bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin:
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def _parse(self, header: bytes, start: int) -> dict[str, TensorInfo]:
        try:
            entries = parse_json(header)
        except RepeatedName as error:
            what = f"{error.name}: listed twice in the header"
            raise CheckpointError(f"{self.path}: {what}") from None
        except ValueError as error:
            raise CheckpointError(f"{self.path}: header is not JSON") from error
        if not isinstance(entries, dict):
            raise CheckpointError(f"{self.path}: header: expected a JSON object")
        entries.pop("__metadata__", None)
        spans: list[tuple[int, int, str]] = []
        tensors: dict[str, TensorInfo] = {}
        for name, entry in entries.items():
            kind, shape, offsets = self._entry(name, entry)
            begin, end = offsets
            if kind not in _DTYPES:
                expected = ", ".join(_DTYPES)
                raise CheckpointError(
                    f"{self.path}: {name}: dtype: expected {expected}; found {kind}"
                )
            dtype_name, dtype = _DTYPES[kind]
            size = math.prod(shape) * dtype.itemsize
            if size >= 1 << 63:
                raise CheckpointError(
                    f"{self.path}: {name}: {kind} {shape} are more bytes than a file can have"
                )
            if end - begin != size:
                raise CheckpointError(
                    f"{self.path}: {name}: expected {size} bytes for {kind} {shape}, "
                    f"found {end - begin}"
                )
            spans.append((begin, end, name))
            tensors[name] = TensorInfo(name, shape, dtype_name, self.path, start + begin)
        self._check_spans(sorted(spans), start)
        return tensors

    def _entry(self, name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """Dtype, shape and data_offsets, of the types that they must have."""
        fields = entry if isinstance(entry, dict) else {}
        kind, shape, offsets = (fields.get(name) for name in _FIELDS)
        if not isinstance(kind, str) or not _sizes(shape) or not _sizes(offsets, 2):
            raise CheckpointError(
                f"{self.path}: {name}: expected a dtype, a shape and two data_offsets, in whole "
                "numbers of 0 or more"
            )
        return kind, tuple(shape), tuple(offsets)

    def _check_spans(self, spans: list[tuple[int, int, str]], start: int) -> None:
        position = 0
        for begin, end, name in spans:
            if begin != position:
                raise CheckpointError(
                    f"{self.path}: {name}: data expected at offset {position}, found at {begin}"
                )
            if start + end > self.size_bytes:
                raise CheckpointError(
                    f"{self.path}: {name}: file truncated: expected at least {start + end} "
                    f"bytes, found {self.size_bytes}"
                )
            position = end
        if start + position != self.size_bytes:
            raise CheckpointError(
                f"{self.path}: expected {start + position} bytes, found {self.size_bytes}"
            )


_DTYPES_BY_NAME = {name: dtype for name, dtype in _DTYPES.values()}


class TensorFiles:
    """Several safetensors files as one source of tensors by name."""

    def __init__(self, files: list[SafetensorsFile]) -> None:
        self.files = tuple(files)
        self._file_of = {name: file for file in files for name in file.tensors}

    def __contains__(self, name: str) -> bool:
        """Whether a file has the tensor."""
        return name in self._file_of

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of the mapped file."""
        return self._file(name).tensor(name)

    def release(self, name: str) -> None:
        """As `SafetensorsFile.release`."""
        self._file(name).release(name)

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._file_of:
            names = ", ".join(str(file.path) for file in self.files)
            raise CheckpointError(f"{name}: in none of {names}")
        return self._file_of[name]
