"""Sparse MLA: absorbed latent attention over selected positions.

Contract, and the naive reference: DeepSeek-V3.2's sparse attention in the absorbed (MQA) form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.contract import Contract, Port

CONTRACT = Contract(
    name="SparseMla",
    torch_name="sparse_mla",
    doc="softmax(q.c * scale) c[:value_width] over the selected cache entries; -1 is no entry.",
    inputs=(
        Port("query", ("B", "S", "H", "D")),
        Port("cache", ("B", "1", "C", "D")),
        Port("indices", ("B", "S", "K"), "int32"),
    ),
    outputs=(Port("latent", ("B", "S", "H", "R")),),
    attributes={"scale": float, "value_width": int},
    derived={"R": "value_width"},
    tolerance={"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2},
)


def reference(
    query: Tensor, cache: Tensor, indices: Tensor, *, scale: float, value_width: int
) -> Tensor:
    """query [B, S, H, R+rope], cache [B, 1, C, R+rope], indices [B, S, K] → [B, S, H, R]."""
    batch, length, heads, _ = query.shape
    latent = torch.zeros(batch, length, heads, value_width, dtype=torch.float32)
    for b in range(batch):
        for s in range(length):
            chosen = [p for p in indices[b, s].tolist() if p >= 0]
            entries = cache[b, 0, chosen].float()  # [K', R+rope]
            probabilities = torch.softmax(query[b, s].float() @ entries.T * scale, dim=-1)
            latent[b, s] = probabilities @ entries[:, :value_width]
    return latent.to(query.dtype)
