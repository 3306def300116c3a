"""Loading a checkpoint into the eager model, through the same bindings as the runtimes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.config import ModelConfig
from glm_trt.model.glm_moe_dsa import (
    DecoderLayer,
    Embedding,
    GlmMoeDsa,
    Head,
    PredictionLayer,
)
from glm_trt.model.operators import EagerOperators, product_by_slices

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def as_torch(array: np.ndarray) -> Tensor:
    """A tensor with `array`'s values (bfloat16 too); always a copy, as mapped files are
    read-only.
    """
    if array.dtype == b.NUMPY_DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


class ExpertStack:
    """A stacked weight of experts, of which each is read when it is asked for.

    Stands in for a tensor [E, rows, columns] of which only whole experts are taken: a layer of the
    full model has 19 GB of them, and a token reaches 0.6.

    Parameters
    ----------
    read : gives an expert's own tensor, in the block's dtype (bytes and scales in theirs).
    """

    def __init__(self, read: Callable[[int], Tensor]) -> None:
        self._read = read

    def __getitem__(self, expert: int) -> Tensor:
        """The expert's own tensor."""
        return self._read(expert)


# Rows of a matrix [n, ·] by an index of them, in the block's dtype.
ReadRows = Callable[[Any], Tensor]


class LargeEmbedding(nn.Module):
    """An embedding of which only the rows that are looked up are read from the file."""

    def __init__(self, read: ReadRows) -> None:
        super().__init__()
        self._read = read

    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 [B, S] → [B, S, hidden]."""
        return self._read(ids)


class LargeLinear(nn.Module):
    """A linear layer whose weight [out, in] is read from its file, some rows at a time.

    Parameters
    ----------
    release : lets go of the memory of what was read.
    """

    def __init__(self, shape: tuple[int, ...], read: ReadRows, release: Callable[[], None]) -> None:
        super().__init__()
        self._shape, self._read, self._release = shape, read, release

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] → [T, out]."""
        y = product_by_slices(x, self._shape, self._read)
        self._release()
        return y


def _expert_stack(binding: b.Binding, source: b.TensorSource, dtype: torch.dtype) -> ExpertStack:
    def read(expert: int) -> Tensor:
        tensor = as_torch(b.bound_expert(binding, source, expert)).to(dtype)
        b.release_expert(binding, source, expert)
        return tensor

    return ExpertStack(read)


def _large_module(binding: b.Binding, source: b.TensorSource, dtype: torch.dtype) -> nn.Module:
    (name,) = binding.tensors
    weight = source.tensor(name)

    def read(rows: Any) -> Tensor:
        rows = rows.numpy() if isinstance(rows, Tensor) else rows
        return as_torch(weight[rows]).to(dtype)

    if binding.name == "embed_tokens.weight":
        return LargeEmbedding(read)
    return LargeLinear(weight.shape, read, lambda: source.release(name))


LARGE_MODULES = ("embed_tokens.weight", "lm_head.weight")


def held_dtype(name: str, dtype: str) -> torch.dtype:
    """What a block in `dtype` holds its parameter `name` in, unless that is bytes."""
    wide = dtype == "float64"  # which is at least as wide as any parameter wants
    return TORCH_DTYPES[dtype if wide else b.parameter_dtype(name) or dtype]


def load_block(
    config: ModelConfig,
    layer: int | str,
    bindings: Iterable[b.Binding],
    source: b.TensorSource,
    dtype: str,
    *,
    absorbed: bool = False,
    operators: EagerOperators | None = None,
) -> nn.Module:
    """One eager block on the CPU: `layer` is a layer's number, "embedding" or "head".

    Experts' weights above `bindings.LARGE` numbers stay in their files: each is read, and
    converted, when a token reaches it. So do embeddings and heads.
    """
    block = empty_block(config, layer, absorbed=absorbed, operators=operators)
    return fill_block(block, load_weights(bindings, source, dtype))


def empty_block(
    config: ModelConfig,
    layer: int | str,
    *,
    absorbed: bool = False,
    operators: EagerOperators | None = None,
) -> nn.Module:
    """The block of `layer`, as in `load_block`, with parameters that have shapes alone."""
    operators = operators or EagerOperators()
    with torch.device("meta"):
        if layer == "embedding":
            return Embedding(config)
        if layer == "head":
            return Head(config, operators)
        kind = DecoderLayer if int(layer) < config.num_hidden_layers else PredictionLayer
        return kind(config, int(layer), absorbed, operators)


def fill_block(block: nn.Module, weights: dict[str, Any]) -> nn.Module:
    """An empty block with `weights`, which are all that it has, by name; see `load_weights`."""
    weights = dict(weights)
    for name, weight in list(weights.items()):
        if isinstance(weight, Tensor):
            continue
        module, _, last = name.rpartition(".")
        if isinstance(weight, nn.Module):
            setattr(block, module, weight)
        else:
            experts = block.get_submodule(module)
            delattr(experts, last)
            setattr(experts, last, weight)
        del weights[name]
    block.load_state_dict(weights, strict=True, assign=True)
    return block.eval().requires_grad_(False)


def load_weights(
    bindings: Iterable[b.Binding], source: b.TensorSource, dtype: str
) -> dict[str, Any]:
    """The weights of one block by the names of its inputs: tensors, and what stands for those that
    stay in their files (`ExpertStack`, `LargeEmbedding`, `LargeLinear`).
    """
    weights: dict[str, Any] = {}
    for binding in bindings:
        wanted = torch.int8 if binding.dtype == "int8" else held_dtype(binding.name, dtype)
        if b.is_large_stack(binding):
            weights[binding.name] = _expert_stack(binding, source, wanted)
        elif binding.name in LARGE_MODULES and math.prod(binding.shape) > b.LARGE:
            weights[binding.name] = _large_module(binding, source, wanted)
        else:
            weights[binding.name] = as_torch(b.bound_tensor(binding, source)).to(wanted)
    return weights


def load_model(
    checkpoint: Checkpoint,
    dtype: str = "float32",
    *,
    absorbed: bool = False,
    operators: EagerOperators | None = None,
) -> GlmMoeDsa:
    """The eager model on the CPU with the checkpoint's weights in `dtype`."""
    config = checkpoint.config
    with torch.device("meta"):
        model = GlmMoeDsa(config, absorbed=absorbed, operators=operators)

    def loaded(layer: int | str, bindings: list[b.Binding]) -> nn.Module:
        return load_block(
            config, layer, bindings, checkpoint, dtype, absorbed=absorbed, operators=operators
        )

    model.add_module("embedding", loaded("embedding", b.embedding_bindings(config, checkpoint)))
    model.add_module("head", loaded("head", b.head_bindings(config, checkpoint)))
    for i in range(config.num_hidden_layers):
        model.layers[i] = loaded(i, b.layer_bindings(config, checkpoint, i))
    return model.eval()
