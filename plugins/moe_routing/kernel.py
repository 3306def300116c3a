"""MoE routing in Triton: one program a token."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def route_tokens(
    p_logits, p_bias, p_indices, p_weights,
    n_experts, n_group, topk_group, top_k, norm_topk_prob, scale,
    BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """logits [T, E], bias [E] → indices int32 [T, k], weights [T, k].

    Every choice takes the largest value and then the smallest index that has it. NaN counts as the
    largest, as in torch.topk: it shows in the weights, and every index stays below E.
    """
    i_token = tl.program_id(0).to(tl.int64)
    o_e = tl.arange(0, BLOCK_E)
    inside = o_e < n_experts
    b_logits = tl.load(p_logits + i_token * n_experts + o_e, mask=inside, other=0.0)
    b_bias = tl.load(p_bias + o_e, mask=inside, other=0.0)
    b_scores = tl.sigmoid(b_logits)
    b_choice = b_scores + b_bias
    # A NaN would equal no maximum, and the choice fall on a lane beyond the experts.
    b_choice = tl.where(b_choice == b_choice, b_choice, float("inf"))
    # What may still be chosen; a choice of −∞ may, where nothing else is left.
    b_open = inside
    if topk_group < n_group:
        size = n_experts // n_group
        # The score of its group at the place of each group's first expert, −inf elsewhere.
        b_group = tl.full([BLOCK_E], float("-inf"), tl.float32)
        for i_group in range(n_group):
            mine = tl.where(inside & (o_e // size == i_group), b_choice, float("-inf"))
            best = tl.max(mine, 0)
            first = tl.min(tl.where(mine == best, o_e, BLOCK_E), 0)
            second = tl.max(tl.where(o_e == first, float("-inf"), mine), 0)
            total = tl.where(size > 1, best + second, best)  # a group of one has no second
            total = tl.where(total == total, total, float("inf"))  # ∞ − ∞, as NaN above
            b_group = tl.where(o_e == i_group * size, total, b_group)
        b_left = inside & (o_e % size == 0)
        b_kept = o_e < 0
        for _ in range(topk_group):
            best = tl.max(tl.where(b_left, b_group, float("-inf")), 0)
            first = tl.min(tl.where(b_left & (b_group == best), o_e, BLOCK_E), 0)
            b_kept = b_kept | (o_e // size == first // size)
            b_left = b_left & (o_e != first)
        b_open = b_open & b_kept
    o_k = tl.arange(0, BLOCK_K)
    b_indices = tl.zeros([BLOCK_K], tl.int32)
    b_weights = tl.zeros([BLOCK_K], tl.float32)
    for i_slot in range(top_k):
        best = tl.max(tl.where(b_open, b_choice, float("-inf")), 0)
        expert = tl.min(tl.where(b_open & (b_choice == best), o_e, BLOCK_E), 0)
        score = tl.sum(tl.where(o_e == expert, b_scores, 0.0), 0)
        b_indices = tl.where(o_k == i_slot, expert, b_indices)
        b_weights = tl.where(o_k == i_slot, score, b_weights)
        b_open = b_open & (o_e != expert)
    if norm_topk_prob != 0:
        b_weights = b_weights / (tl.sum(b_weights, 0) + 1e-20)
    o_out = i_token * top_k + o_k
    tl.store(p_indices + o_out, b_indices, mask=o_k < top_k)
    tl.store(p_weights + o_out, b_weights * scale, mask=o_k < top_k)
