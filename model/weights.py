"""Loading a checkpoint into the eager model, through the same bindings as the runtimes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glm_trt.model import bindings as b
from glm_trt.model.checkpoint import Checkpoint
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
    """

    def __init__(self, binding: b.Binding, source: b.TensorSource, dtype: str) -> None:
        self.binding, self.source, self.dtype = binding, source, dtype

    def __getitem__(self, expert: int) -> Tensor:
        """The expert's own tensor, in the block's dtype (bytes and scales in theirs)."""
        array = b.bound_expert(self.binding, self.source, expert)
        tensor = as_torch(array).to(_wanted(self.binding, self.dtype))
        b.release_expert(self.binding, self.source, expert)
        return tensor


class LargeEmbedding(nn.Module):
    """An embedding whose rows are read from its file."""

    def __init__(self, binding: b.Binding, source: b.TensorSource, dtype: str) -> None:
        super().__init__()
        self.binding, self.source, self.dtype = binding, source, _wanted(binding, dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 [B, S] → [B, S, hidden]."""
        rows = self.source.tensor(self.binding.tensors[0])[ids.numpy()]
        return as_torch(rows).to(self.dtype)


class LargeLinear(nn.Module):
    """A linear layer whose weight is read from its file, some rows at a time."""

    def __init__(self, binding: b.Binding, source: b.TensorSource, dtype: str) -> None:
        super().__init__()
        self.binding, self.source, self.dtype = binding, source, _wanted(binding, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] → [T, out]."""
        weight = self.source.tensor(self.binding.tensors[0])
        y = product_by_slices(x, weight.shape, lambda rows: as_torch(weight[rows]).to(self.dtype))
        self.source.release(self.binding.tensors[0])
        return y


_LARGE: dict[str, Any] = {"embed_tokens": LargeEmbedding, "lm_head": LargeLinear}


def _wanted(binding: b.Binding, dtype: str) -> torch.dtype:
    """Inputs bound as float32 stay at least that wide, and bytes bytes."""
    if binding.dtype == "int8":
        return torch.int8
    return TORCH_DTYPES["float64" if dtype == "float64" else binding.dtype or dtype]


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
    operators = operators or EagerOperators()
    block: nn.Module
    with torch.device("meta"):
        if layer == "embedding":
            block = Embedding(config)
        elif layer == "head":
            block = Head(config, operators)
        else:
            kind = DecoderLayer if int(layer) < config.num_hidden_layers else PredictionLayer
            block = kind(config, int(layer), absorbed, operators)
    weights = load_weights(bindings, source, dtype)
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
        module = binding.name.rpartition(".")[0]
        if b.is_large_stack(binding):
            weights[binding.name] = ExpertStack(binding, source, dtype)
        elif module in _LARGE and math.prod(binding.shape) > b.LARGE:
            weights[binding.name] = _LARGE[module](binding, source, dtype)
        else:
            tensor = as_torch(b.bound_tensor(binding, source))
            weights[binding.name] = tensor.to(_wanted(binding, dtype))
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

    model.add_module("embedding", loaded("embedding", b.embedding_bindings(config)))
    model.add_module("head", loaded("head", b.head_bindings(config, checkpoint)))
    for i in range(config.num_hidden_layers):
        model.layers[i] = loaded(i, b.layer_bindings(config, checkpoint, i))
    return model.eval()
