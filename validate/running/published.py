"""A checkpoint's weights by their published names: what the yardstick is made of.

A bundle reads its checkpoint through the bindings that `model.bindings` made and the runtimes
follow. A yardstick that read it so too would share their faults. So here names are matched, halves
told apart, experts stacked and narrow matrices dequantised anew; only the eager block, which says
what it wants under which name, is shared.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.weights import (
    LARGE_MODULES,
    ExpertStack,
    LargeEmbedding,
    LargeLinear,
    held_dtype,
)
from glm_trt.model.config import ModelConfig
from glm_trt.model.dequantize import dequantize_fp8, dequantize_nvfp4

_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8, "I8": torch.int8, "F64": torch.float64,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000
_EXPERTS = "mlp.experts."
_FP8_SCALE, _OTHER_FP8_SCALE = "_scale_inv", "_scale"
_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class _Place(NamedTuple):
    file: Path
    map: mmap.mmap
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class PublishedTensors:
    """The tensors of a sound checkpoint (`Checkpoint.open` says whether it is), mapped."""

    def __init__(self, directory: Path) -> None:
        single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
        everything = set(directory.glob("*.safetensors"))
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        named = directory / config.get("transformers_weights", "")
        if named.suffix == ".safetensors":
            files = {named}
        elif single.is_file() and named == directory:
            files = {single}
        elif (index := index if named == directory else named).is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            files = {directory / name for name in names}
        else:
            files = everything
        self._places: dict[str, _Place] = {}
        for path in files:
            self._map(path)
        for path in sorted(everything - files):
            # Files of something else lie there as well, with whatever for a header.
            with suppress(ValueError, OSError, AttributeError, KeyError, TypeError):
                self._map(path, "model.layers.")

    def _map(self, path: Path, prefix: str = "") -> None:
        """Adds what a file holds under names that begin so, and that are not there yet."""
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(start - 8, _MAX_HEADER_BYTES)))
            # A copy on write, as torch takes no memory that cannot be written; none is.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        for name, of in header.items():
            known = name.startswith(prefix) and of.get("dtype") in _DTYPES
            if known and name not in self._places:
                begin, end = (start + offset for offset in of["data_offsets"])
                dtype, shape = _DTYPES[of["dtype"]], tuple(of["shape"])
                self._places[name] = _Place(path, mapped, begin, end, dtype, shape)

    def __contains__(self, name: str) -> bool:
        """Whether it is stored."""
        return name in self._places

    def file(self, name: str) -> Path:
        """Where it is stored."""
        return self._places[name].file

    def view(self, name: str) -> Tensor:
        """The tensor where it is mapped."""
        place = self._places[name]
        count = math.prod(place.shape)
        flat = torch.frombuffer(place.map, dtype=place.dtype, count=count, offset=place.begin)
        return flat.reshape(place.shape)

    def release(self, name: str) -> None:
        """Let go of the pages that are the tensor's own."""
        place = self._places[name]
        begin = -(-place.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        end = place.end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin:
            place.map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


class Part(NamedTuple):
    """So many numbers of a block's input, one after another: a stored tensor, or of one expert or
    some heads, in the dtype in which it is stored (float32 of what is dequantised).
    """

    tensor: str
    size: int
    read: Callable[[], Tensor]


class PublishedWeights:
    """The weights of eager blocks, read from a checkpoint's files alone."""

    def __init__(self, directory: Path, config: ModelConfig) -> None:
        self.tensors, self.config = PublishedTensors(directory), config

    def of(self, block: nn.Module, prefix: str, norm: str, dtype: str) -> dict[str, Any]:
        """What `block` holds in `dtype`, by its parameters' names, as `load_weights` gives it.

        Parameters
        ----------
        prefix : of the layer's tensors; "" for the embedding and heads.
        norm : the tensor of the block's own `norm.weight`: the last norm, or a shared head's.
        """
        return {
            name: self._weight(name, self._source(name, prefix, norm), parameter, dtype)
            for name, parameter in block.state_dict().items()
        }

    def parts(self, name: str, shape: tuple[int, ...], prefix: str, norm: str) -> list[Part]:
        """What the input `name` of a block holds, as it is stored; prefix and norm as above."""
        source, count = self._source(name, prefix, norm), math.prod(shape)
        if name.startswith(_EXPERTS):
            return [
                part
                for expert in range(shape[0])
                for part in self._of_expert(source, expert, shape)
            ]
        if name in ("self_attn.k_up_proj", "self_attn.v_up_proj"):
            module = f"{source.rpartition('.')[0]}.kv_b_proj.weight"
            return [Part(module, count, partial(self._half, source, None))]
        if source.endswith(_FP8_SCALE):
            return [self._scale_part(source, shape)]
        return [Part(source, count, partial(self.tensors.view, source))]

    def _of_expert(self, source: str, expert: int, shape: tuple[int, ...]) -> Iterator[Part]:
        count = math.prod(shape[1:])
        if source in self.tensors:
            yield Part(source, count, lambda: self.tensors.view(source)[expert])
            return
        names, suffix = self._modules(source, expert)
        for name in names:
            if suffix == _FP8_SCALE:
                yield self._scale_part(name, shape[1:] if len(names) == 1 else shape[2:])
            else:
                yield Part(name, count // len(names), partial(self.tensors.view, name))

    def _scale_part(self, source: str, shape: tuple[int, ...]) -> Part:
        name = self._scale_name(source)
        return Part(name, math.prod(shape), lambda: self.tensors.view(name).expand(shape))

    def _source(self, name: str, prefix: str, norm: str) -> str:
        """The published name of what a block calls `name`, where it is stored under one."""
        own = {
            "norm.weight": norm,
            "embed_tokens.weight": self._stored("model.embed_tokens.weight", "lm_head.weight"),
            "lm_head.weight": self._stored("lm_head.weight", "model.embed_tokens.weight"),
        }
        return own.get(name, prefix + name)

    def _stored(self, name: str, tied: str) -> str:
        """`name`, or where it is not stored the one that it is tied to."""
        return name if name in self.tensors else tied

    def _weight(self, name: str, source: str, parameter: Tensor, dtype: str) -> Any:
        is_bytes = parameter.dtype == torch.int8
        wanted = torch.int8 if is_bytes else held_dtype(name, dtype)
        shape, large = tuple(parameter.shape), parameter.numel() > b.LARGE
        if name.startswith(_EXPERTS):
            stack = ExpertStack(lambda expert: self._expert(source, expert, shape[1:], wanted))
            return stack if large else torch.stack([stack[i] for i in range(shape[0])])
        if name in LARGE_MODULES and large:
            return self._large(name, source, wanted)
        if name in ("self_attn.k_up_proj", "self_attn.v_up_proj"):
            return self._half(source, wanted)
        if source.endswith(_FP8_SCALE):
            return self._scale(source, wanted, shape)
        return self._copy(source, wanted).reshape(shape)

    def _scale(self, source: str, wanted: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Scales of FP8, which may be stored under another name, and as one for all."""
        return self._copy(self._scale_name(source), wanted).expand(shape).contiguous()

    def _scale_name(self, source: str) -> str:
        if source in self.tensors:
            return source
        return source.removesuffix(_FP8_SCALE) + _OTHER_FP8_SCALE

    def _copy(self, source: str, wanted: torch.dtype) -> Tensor:
        view = self.tensors.view(source)
        copy = _as(view, wanted)
        copy = copy.clone() if copy.data_ptr() == view.data_ptr() else copy
        self.tensors.release(source)
        return copy

    def _expert(
        self, source: str, expert: int, shape: tuple[int, ...], wanted: torch.dtype
    ) -> Tensor:
        """One expert of the stacked `source`: stored so, or its projections one by one."""
        if source in self.tensors:
            one = self.tensors.view(source)[expert].to(wanted, copy=True)
            self.tensors.release(source)
            return one
        names, suffix = self._modules(source, expert)
        if suffix == _FP8_SCALE:  # of gate and up [2, ·, ·]
            blocks = shape if len(names) == 1 else shape[1:]
            return torch.cat([self._scale(x, wanted, blocks) for x in names]).reshape(shape)
        return torch.cat([self._copy(x, wanted).flatten() for x in names]).reshape(shape)

    @staticmethod
    def _modules(source: str, expert: int) -> tuple[list[str], str]:
        """The tensors of one expert's share of the stacked `source`, and what follows `weight` in
        their names.
        """
        prefix, _, name = source.partition(_EXPERTS)
        stacked = next(of for of in _PROJECTIONS if name.startswith(of))
        suffix = name.removeprefix(stacked)
        modules = _PROJECTIONS[stacked]
        return [f"{prefix}{_EXPERTS}{expert}.{of}.weight{suffix}" for of in modules], suffix

    def _large(self, name: str, source: str, wanted: torch.dtype) -> nn.Module:
        weight = self.tensors.view(source)

        def read(rows: Any) -> Tensor:
            return weight[rows].to(wanted, copy=True)

        if name == "embed_tokens.weight":
            return LargeEmbedding(read)
        return LargeLinear(tuple(weight.shape), read, lambda: self.tensors.release(source))

    def _half(self, source: str, wanted: torch.dtype | None) -> Tensor:
        """Of each head of `kv_b_proj` the rows that make keys, or those that make values; as they
        are stored if `wanted` is None.
        """
        prefix, _, half = source.rpartition(".")
        matrix = self._matrix(f"{prefix}.kv_b_proj")
        heads = matrix.unflatten(0, (self.config.num_attention_heads, -1))
        sizes = (self.config.qk_nope_head_dim, self.config.v_head_dim)
        keys, values = heads.split(sizes, dim=1)
        rows = keys if half == "k_up_proj" else values
        return rows if wanted is None else rows.to(wanted, copy=True).contiguous()

    def _matrix(self, module: str) -> Tensor:
        """A module's weight; in float32 where it is stored narrow."""
        codes = self.tensors.view(f"{module}.weight")
        if codes.dtype == torch.float8_e4m3fn:
            blocks = tuple(-(-size // 128) for size in codes.shape)
            scale = self._scale(f"{module}.weight{_FP8_SCALE}", torch.float32, blocks)
            return dequantize_fp8(codes.view(torch.int8), scale)
        if f"{module}.weight_scale" in self.tensors:
            scale = self.tensors.view(f"{module}.weight_scale").view(torch.int8)
            overall = self.tensors.view(f"{module}.weight_scale_2")
            return dequantize_nvfp4(codes.view(torch.int8), scale, overall)
        return codes


def _as(view: Tensor, wanted: torch.dtype) -> Tensor:
    """Bytes as bytes, numbers as numbers."""
    return view.view(torch.int8) if wanted == torch.int8 else view.to(wanted)
