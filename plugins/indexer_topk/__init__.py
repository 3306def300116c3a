"""Indexer top-k: the cached positions each new token may attend to.

Contract, and the naive reference after DeepSeek-V3.2's lightning indexer (transformers'
`GlmMoeDsaIndexer`). Ties go to the smaller position (−0 equals +0); positions come out in
ascending order, then −1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.contract import Contract, Port

CONTRACT = Contract(
    name="IndexerTopK",
    torch_name="indexer_topk",
    doc="Visible positions with the largest indexer scores, ascending, then -1.",
    inputs=(
        Port("query", ("B", "S", "H", "D")),
        Port("keys", ("B", "1", "C", "D")),
        Port("weights", ("B", "S", "H"), "float32"),
        Port("past_lengths", ("B",), "int64"),
    ),
    outputs=(Port("indices", ("B", "S", "K"), "int32"),),
    attributes={"index_topk": int, "scale": float},
    derived={"K": "min(index_topk, C)"},
    tolerance={"float32": 0.0, "float16": 0.0, "bfloat16": 0.0},
)


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
