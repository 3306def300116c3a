"""The naive reference: DeepSeek-V2's multi-head latent attention in the absorbed (MQA)
form, for layers that have no indexer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    query: Tensor, cache: Tensor, past_lengths: Tensor, *, scale: float, value_width: int
) -> Tensor:
    """query [B, S, H, R+rope], cache [B, 1, C, R+rope], past_lengths [B] → [B, S, H, R]."""
    batch, length, heads, _ = query.shape
    latent = torch.zeros(batch, length, heads, value_width, dtype=torch.float32)
    for b in range(batch):
        for s in range(length):
            entries = cache[b, 0, : int(past_lengths[b]) + s + 1].float()  # [seen, R+rope]
            probabilities = torch.softmax(query[b, s].float() @ entries.T * scale, dim=-1)
            latent[b, s] = probabilities @ entries[:, :value_width]
    return latent.to(query.dtype)
