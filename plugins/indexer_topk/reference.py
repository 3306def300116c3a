"""The naive reference after DeepSeek-V3.2's lightning indexer (transformers'
`GlmMoeDsaIndexer`). Ties go to the smaller position (−0 equals +0); positions come out in
ascending order, then −1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    query: Tensor,
    keys: Tensor,
    weights: Tensor,
    past_lengths: Tensor,
    *,
    index_topk: int,
    scale: float,
) -> Tensor:
    """query [B, S, H, D], keys [B, 1, C, D], weights [B, S, H], past_lengths [B] → [B, S, K]."""
    batch, length = query.shape[:2]
    count = min(index_topk, keys.shape[2])
    indices = torch.full((batch, length, count), -1, dtype=torch.int32)
    for b in range(batch):
        for s in range(length):
            seen = int(past_lengths[b]) + s + 1
            dots = query[b, s].float() @ keys[b, 0, :seen].float().T  # [H, seen]
            scores = (weights[b, s] @ torch.relu(dots * scale)).tolist()
            best = sorted(range(seen), key=lambda p: (-scores[p], p))[:count]
            indices[b, s, : len(best)] = torch.tensor(sorted(best))
    return indices
