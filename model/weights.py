"""Loading a checkpoint into the eager model, through the same bindings as the runtimes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from glm_trt.model import bindings as b
from glm_trt.model.checkpoint import Checkpoint
from glm_trt.model.glm_moe_dsa import GlmMoeDsa
from glm_trt.model.operators import EagerOperators

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


def block_weights(
    bindings: list[b.Binding], checkpoint: Checkpoint, dtype: str
) -> dict[str, Tensor]:
    """The weights of one block in `dtype`; inputs bound as float32 stay at least that wide."""
    weights = {}
    for binding in bindings:
        wanted = "float64" if dtype == "float64" else binding.dtype or dtype
        tensor = as_torch(b.bound_tensor(binding, checkpoint))
        weights[binding.name] = tensor.to(TORCH_DTYPES[wanted])
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
    blocks: list[tuple[nn.Module, list[b.Binding]]] = [
        (model.embedding, b.embedding_bindings(config)),
        (model.head, b.head_bindings(config, checkpoint)),
    ]
    for i, layer in enumerate(model.layers):
        blocks.append((layer, b.layer_bindings(config, checkpoint, i)))
    for block, bindings in blocks:
        weights = block_weights(bindings, checkpoint, dtype)
        block.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)
