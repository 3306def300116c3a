"""The naive reference: the four recurrences of the ONNX definition, of which
`gated_delta` is Gated DeltaNet (arXiv 2412.06464) with a decay per head, and Kimi Delta Attention
(arXiv 2510.26692) with a decay per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    update_rule: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """query [B, S, Hq·dk], key [B, S, H·dk], value [B, S, H·dv], past_state [B, H, dk, dv],
    decay [B, S, H] or [B, S, H·dk], beta [B, S, 1] or [B, S, H]
    → output [B, S, Hq·dv], present_state [B, H, dk, dv].

    A decay or beta that the rule does not use is ignored; scale 0 stands for dk^-½.
    """
    batch, length, _ = query.shape
    heads, group = kv_num_heads, q_num_heads // kv_num_heads
    width = key.shape[-1] // heads
    q = query.float().reshape(batch, length, heads, group, width)
    k = key.float().reshape(batch, length, heads, width)
    v = value.float().reshape(batch, length, heads, value.shape[-1] // heads)
    state = torch.zeros(batch, heads, width, v.shape[-1])
    if past_state is not None:
        state = past_state.float().clone()
    state_dtype = query.dtype if past_state is None else past_state.dtype
    outputs = torch.zeros(batch, length, heads, group, v.shape[-1])
    for t in range(length):
        if "gated" in update_rule:
            assert decay is not None, "a gated rule needs a decay"
            g = decay[:, t].float().reshape(batch, heads, -1, 1)  # [B, H, 1 or dk, 1]
            state = state * g.exp()
        added = v[:, t]  # [B, H, dv]
        if "delta" in update_rule:
            assert beta is not None, "a delta rule needs a beta"
            remembered = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
            added = beta[:, t].float().unsqueeze(-1) * (added - remembered)
        state = state + k[:, t].unsqueeze(-1) * added.unsqueeze(-2)
        outputs[:, t] = torch.einsum("bhkv,bhgk->bhgv", state, q[:, t])
    outputs = outputs * (scale or width**-0.5)
    return outputs.flatten(2).to(query.dtype), state.to(state_dtype)
