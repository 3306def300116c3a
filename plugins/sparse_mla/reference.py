"""The naive reference: DeepSeek-V3.2's sparse attention in the absorbed (MQA) form."""

from __future__ import annotations

import torch
from torch import Tensor


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
