"""The naive reference: DeepSeek-V3 (arXiv 2412.19437, section 2.1.2), as in
transformers' `GlmMoeDsaTopkRouter`. Ties go to the smaller group and the smaller expert.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    logits: Tensor,
    correction_bias: Tensor,
    *,
    top_k: int,
    n_group: int,
    topk_group: int,
    norm_topk_prob: int,
    routed_scaling_factor: float,
) -> tuple[Tensor, Tensor]:
    """logits [T, E], correction_bias [E] → indices int32 [T, k], weights [T, k]."""
    tokens, experts = logits.shape
    indices = torch.empty(tokens, top_k, dtype=torch.int32)
    weights = torch.empty(tokens, top_k, dtype=logits.dtype)
    size = experts // n_group
    for t in range(tokens):
        scores = logits[t].sigmoid()
        choice = (scores + correction_bias).tolist()
        groups = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(n_group)]
        kept = sorted(range(n_group), key=lambda g: (-groups[g], g))[:topk_group]
        candidates = [e for e in range(experts) if e // size in kept]
        chosen = sorted(candidates, key=lambda e: (-choice[e], e))[:top_k]
        picked = scores[chosen]
        if norm_topk_prob:
            picked = picked / (picked.sum() + 1e-20)
        indices[t] = torch.tensor(chosen)
        weights[t] = picked * routed_scaling_factor
    return indices, weights
