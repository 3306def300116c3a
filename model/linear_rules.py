"""The recurrences of the ONNX operator `LinearAttention`, token by token and in chunks.

Shapes: B batch, S tokens, H heads, K key width, V value width; N chunks of L tokens. The state
S [B, H, K, V] maps keys to values. A rule's name says which terms it has: "gated" a decay,
"delta" the retrieval of what the state already holds for the key.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UPDATE_RULES = ("linear", "gated", "delta", "gated_delta")
CHUNK = 64


def recurrent_rule(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, decay: Tensor, beta: Tensor, rule: str
) -> tuple[Tensor, Tensor]:
    """The definition: S ← e^g S; S ← S + k δᵀ; o = Sᵀ q, with δ = β (v − Sᵀ k), or v without delta.

    query, key [B, H, S, K], value [B, H, S, V], state [B, H, K, V], decay g [B, H, S, 1 or K],
    beta [B, H, S, 1] → output [B, H, S, V], state [B, H, K, V].
    """
    outputs = []
    for t in range(query.shape[2]):
        k, v = key[:, :, t, :, None], value[:, :, t, None, :]  # [B, H, K, 1], [B, H, 1, V]
        if rule.startswith("gated"):
            state = state * decay[:, :, t, :, None].exp()
        if rule.endswith("delta"):
            v = beta[:, :, t, :, None] * (v - (state * k).sum(2, keepdim=True))
        state = state + k * v
        outputs.append((state * query[:, :, t, :, None]).sum(2))
    return torch.stack(outputs, dim=2), state


def chunked_rule(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, decay: Tensor, beta: Tensor, rule: str
) -> tuple[Tensor, Tensor]:
    """The same, a chunk at a time, for a decay per head: decay [B, H, S, 1].

    Within a chunk the deltas δ solve a triangular system: δ_i + β_i Σ_{j<i} e^(G_i − G_j)
    (k_i·k_j) δ_j = β_i (v_i − e^G_i Sᵀ k_i), where G sums the decays and S is the state before
    the chunk (Yang et al. 2024, "Gated Delta Networks", section 3.3).
    """
    length = query.shape[2]
    # Padding with zeros decays nothing and adds nothing.
    query, key, value, decay, beta = (
        F.pad(x, (0, 0, 0, -length % CHUNK)).unflatten(2, (-1, CHUNK))  # [B, H, N, L, ·]
        for x in (query, key, value, decay, beta)
    )
    if not rule.startswith("gated"):
        decay = torch.zeros_like(decay)
    total = decay.cumsum(3)  # G [B, H, N, L, 1]
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=query.device).triu(1)
    between = (total - total.transpose(3, 4)).masked_fill(later, float("-inf")).exp()
    mixing = query @ key.transpose(3, 4) * between  # [B, H, N, L, L]
    read = key * total.exp()  # what each token asks of the state before the chunk
    if rule.endswith("delta"):
        system = beta * (key @ key.transpose(3, 4)) * between
        both = torch.cat([beta * value, beta * read], dim=-1)
        solved = torch.linalg.solve_triangular(system, both, upper=False, unitriangular=True)
        value, read = solved.split([value.shape[-1], key.shape[-1]], dim=-1)
    query = query * total.exp()
    last = total[..., -1:, :]
    kept = key * (last - total).exp()
    outputs = []
    for n in range(query.shape[2]):
        added = value[:, :, n]  # [B, H, L, V]
        if rule.endswith("delta"):
            added = added - read[:, :, n] @ state
        outputs.append(query[:, :, n] @ state + mixing[:, :, n] @ added)
        state = state * last[:, :, n].exp() + kept[:, :, n].transpose(2, 3) @ added
    return torch.cat(outputs, dim=2)[:, :, :length], state


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor,
    decay: Tensor,
    beta: Tensor,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    update_rule: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """As `EagerOperators.linear_attention`; in float32 or wider, in chunks where they pay."""
    if update_rule not in UPDATE_RULES:
        raise ValueError(f"update_rule: expected one of {UPDATE_RULES}, found {update_rule!r}")
    wide = torch.promote_types(torch.promote_types(query.dtype, past_state.dtype), torch.float32)
    group = q_num_heads // kv_num_heads  # query heads that share a state

    def split(x: Tensor, heads: int) -> Tensor:
        by_head = x.to(wide).unflatten(2, (heads, -1)).transpose(1, 2)  # [B, heads, S, ·]
        return by_head.repeat_interleave(q_num_heads // heads, dim=1)

    per_channel = decay.shape[2] != kv_num_heads
    rule = recurrent_rule if per_channel or query.shape[1] == 1 else chunked_rule
    output, state = rule(
        split(query, q_num_heads) * (scale or (key.shape[2] // kv_num_heads) ** -0.5),
        split(key, kv_num_heads),
        split(value, kv_num_heads),
        past_state.to(wide).repeat_interleave(group, dim=1),
        split(decay, kv_num_heads),
        split(beta, kv_num_heads),
        update_rule,
    )
    packed = output.transpose(1, 2).flatten(2).to(query.dtype)
    return packed, state[:, ::group].to(past_state.dtype)
