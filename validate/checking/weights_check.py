"""Every weight that a bundle binds, beside the checkpoint's, bit for bit.

What is bound is read as a runtime reads it, by the bundle's bindings; what it should be by
`published`, which knows names alone. So what no input shows is found too: an embedding's row that
no text uses, an expert that no token reaches, one weight an ulp low.

Up to `WHOLE` bytes a weight is compared whole. Of a larger one samples are: the beginning and the
end of each stored tensor that it is made of, and pieces whose places follow from its name.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.errors import GlmTrtError
from glm_trt.validate.judging.problem_kinds import Finding, ProblemKind
from glm_trt.validate.running.published import Part
from glm_trt.validate.running.reference import Reference

Array = NDArray[Any]
Report = dict[str, Any]

WHOLE = 2 << 30
# Numbers that are in memory at once; numbers of a sample, and how many of them beside the ends.
PIECE, SAMPLE, SAMPLES = 1 << 22, 1 << 13, 512
# What a layer wants in float32 whatever its own dtype.
_WIDE = ("mlp.gate.weight", "mlp.gate.e_score_correction_bias", "linear_attn.A_log",
         "linear_attn.dt_bias")  # fmt: skip
_WIDE_SCALES = (".weight_scale_inv", ".weight_scale_2", "_proj_scale_inv", "_proj_scale_2")
_MADE = ("self_attn.k_up_proj", "self_attn.v_up_proj")  # dequantised where stored narrow
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class _Segment(NamedTuple):
    size: int
    read: Callable[[], Array]


class _Flat:
    """Segments one after another as one array, of which ranges are read."""

    def __init__(self, segments: list[_Segment]) -> None:
        self._segments = segments
        self.ends = list(accumulate(segment.size for segment in segments))

    def segment(self, place: int) -> int:
        """Which segment holds a place."""
        return bisect_right(self.ends, place)

    def read(self, start: int, stop: int) -> list[Array]:
        """The places `start` to `stop`, segment by segment."""
        found = []
        while start < stop:
            i = self.segment(start)
            begin = self.ends[i] - self._segments[i].size
            until = min(stop, self.ends[i])
            found.append(self._segments[i].read()[start - begin : until - begin])
            start = until
        return found


class WeightsCheck:
    """Compares the weights of one block after another and counts what was compared."""

    def __init__(self, bundle: Bundle, reference: Reference) -> None:
        self.bundle, self.reference = bundle, reference
        self.whole = self.sampled = 0

    @property
    def skipped(self) -> str | None:
        """Why nothing is compared; None where all is."""
        return self.reference.source if self.reference.published is None else None

    def to_dict(self) -> Report:
        """For the report."""
        return {"whole": self.whole, "sampled": self.sampled, "skipped": self.skipped}

    def of_block(self, block: Block) -> Iterator[Finding]:
        """What is wrong with the weights of `block`, weight by weight."""
        if self.skipped is not None:
            return
        wanted = self.reference.parts(block)
        bindings = {binding.name: binding for binding in block.bindings}
        for name in wanted.keys() - bindings.keys():
            yield _finding(name, "no tensor is bound to it")
        for name, binding in bindings.items():
            if name not in wanted:
                yield _finding(name, "is bound, and the block has no such weight")
                continue
            try:
                text = self._compare(binding, *wanted[name])
            except (GlmTrtError, ValueError, IndexError, KeyError, TypeError) as error:
                text = f"cannot be bound: {error}"
            if text is not None:
                yield _finding(name, text)

    def _compare(self, binding: b.Binding, empty: torch.Tensor, parts: list[Part]) -> str | None:
        """How a weight differs, None if it does not."""
        shape, is_bytes = tuple(empty.shape), empty.dtype == torch.int8
        if binding.shape != shape:
            return f"expected shape {list(shape)}, found {list(binding.shape)}"
        wide = binding.name in _WIDE or binding.name.endswith(_WIDE_SCALES)
        wanted = "int8" if is_bytes else "float32" if wide else None
        if binding.dtype != wanted:
            own = "the graph's dtype"
            return f"expected to be bound in {wanted or own}, found {binding.dtype or own}"
        dtype = np.dtype(np.int8) if is_bytes else _dtype_of(parts, wide)
        found = self._found(binding, dtype)
        expected = _Flat([_Segment(part.size, _reader(part, is_bytes)) for part in parts])
        total = expected.ends[-1]
        if found.ends[-1] != total:
            return f"expected {total} numbers, found {found.ends[-1]}"
        sampled = total * dtype.itemsize > WHOLE
        ranges = _samples(binding.name, expected.ends) if sampled else _pieces(total)
        self.sampled += sampled
        self.whole += not sampled
        differing, compared, first = 0, 0, None
        for start, stop in ranges:
            ours = np.concatenate([_cast(x, dtype) for x in expected.read(start, stop)])
            theirs = np.concatenate(found.read(start, stop))
            unlike = _unlike(theirs, ours, exact=binding.name not in _MADE)
            compared += stop - start
            differing += int(unlike.sum())
            if first is None and differing:
                at = int(unlike.argmax())
                first = start + at, ours[at], theirs[at]
        self._release(binding, parts)
        if first is None:
            return None
        place, ours, theirs = first
        tensor = parts[expected.segment(place)].tensor
        coordinates = [int(i) for i in np.unravel_index(place, shape)]
        of = f"{compared:,} sampled ones" if sampled else f"{compared:,} numbers"
        assert self.reference.published is not None
        return (
            f"{differing:,} of {of} are not those of {tensor} in "
            f"{self.reference.published.tensors.file(tensor)}; first at {coordinates}: expected "
            f"{_shown(ours)}, found {_shown(theirs)}"
        )

    def _found(self, binding: b.Binding, dtype: np.dtype[Any]) -> _Flat:
        """What a runtime binds, in the dtype of the file that it reads."""
        source = self.bundle.weights
        if not b.is_large_stack(binding):
            array = b.bound_tensor(binding, source).reshape(-1)
            return _Flat([_Segment(array.size, lambda: array)])
        bound = b.NUMPY_DTYPES[b.bound_dtype(binding, source)]

        def reader(expert: int, i: int) -> Callable[[], Array]:
            return lambda: _cast(b.expert_parts(binding, source, expert)[i].reshape(-1), bound)

        sizes = [part.size for part in b.expert_parts(binding, source, 0)]
        return _Flat(
            [
                _Segment(size, reader(expert, i))
                for expert in range(binding.shape[0])
                for i, size in enumerate(sizes)
            ]
        )

    def _release(self, binding: b.Binding, parts: Iterable[Part]) -> None:
        for name in b.tensor_names([binding]):
            self.bundle.weights.release(name)
        assert self.reference.published is not None
        for name in {part.tensor for part in parts}:
            self.reference.published.tensors.release(name)


def _finding(name: str, text: str) -> Finding:
    return Finding(name, text, ProblemKind.WEIGHTS)


def _reader(part: Part, is_bytes: bool) -> Callable[[], Array]:
    def read() -> Array:
        tensor = part.read()
        return _array(tensor.view(torch.int8) if is_bytes else tensor).reshape(-1)

    return read


def _array(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(b.NUMPY_DTYPES["bfloat16"])
    return tensor.numpy()


def _dtype_of(parts: list[Part], wide: bool) -> np.dtype[Any]:
    """In which dtype a weight keeps every value that is stored, float64's rounded to float32."""
    stored = {part.read().dtype for part in parts}
    if wide or len(stored) > 1 or torch.float64 in stored:
        return np.dtype(np.float32)
    return b.NUMPY_DTYPES[str(stored.pop()).removeprefix("torch.")]


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    return array.astype(dtype, copy=False)


def _unlike(found: Array, expected: Array, *, exact: bool) -> NDArray[np.bool_]:
    """Which numbers differ in any bit. Of different dtypes the values are compared, and those of
    what was computed: a NaN's bits depend on who made it.
    """
    if exact and found.dtype == expected.dtype:
        kind = _BITS[found.dtype.itemsize]
        unlike: NDArray[np.bool_] = found.view(kind) != expected.view(kind)
        return unlike
    a, c = found.astype(np.float64), expected.astype(np.float64)
    signs = np.signbit(a) != np.signbit(c)
    unlike = ((a != c) | signs) & ~(np.isnan(a) & np.isnan(c))
    return unlike


def _pieces(total: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, PIECE):
        yield start, min(start + PIECE, total)


def _samples(name: str, ends: list[int]) -> Iterator[tuple[int, int]]:
    """The beginning and the end of each part, and pieces in between, at the same places in every
    run: one in each of as many equal shares.
    """
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        middle = min(start + SAMPLE, stop)
        yield start, middle
        if middle < stop:
            yield max(stop - SAMPLE, middle), stop
    share = ends[-1] // SAMPLES
    digest = hashlib.sha256(name.encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    for i, offset in enumerate(generator.integers(0, max(share - SAMPLE, 1), SAMPLES).tolist()):
        start = i * share + offset
        yield start, min(start + SAMPLE, ends[-1])


def _shown(value: Any) -> str:
    if np.issubdtype(np.asarray(value).dtype, np.integer):
        return f"byte 0x{int(value) & 255:02x}"
    number = float(value)
    return (
        f"{number:.9g}" if np.isfinite(number) else f"{number} (bits {value.tobytes()[::-1].hex()})"
    )
