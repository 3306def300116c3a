"""Sparse MLA in Triton: online softmax over the selected entries of the latent cache."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.splits import combine_splits
from glm_trt.plugins.common.triton_helpers import dot

__all__ = ["attend_selected", "combine_splits"]


@triton.jit
def attend_selected(
    p_query, p_cache, p_indices, p_latent, p_parts, p_stats,
    n_length, n_heads, n_width, n_rank, n_capacity, n_selected, n_splits, scale,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_H heads of one token over its share of the selected positions.

    One split: the share is everything, → latent [B·S, H, R]. Several: → parts [B·S, splits, H, R]
    not yet divided, and stats [B·S, splits, H, 2]: the largest score and the sum of exponentials,
    both to the base 2.
    """
    i_row = tl.program_id(1).to(tl.int64)
    i_split = tl.program_id(2)
    o_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    o_r, o_p, o_k = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_K)
    heads, ranks, ropes = o_h < n_heads, o_r < n_rank, n_rank + o_p < n_width
    p_heads = p_query + (i_row * n_heads + o_h[:, None]) * n_width
    b_qr = tl.load(p_heads + o_r[None, :], mask=heads[:, None] & ranks[None, :], other=0.0)
    b_qp = tl.load(p_heads + n_rank + o_p[None, :], mask=heads[:, None] & ropes[None, :], other=0.0)
    p_entries = p_cache + (i_row // n_length) * n_capacity * n_width
    b_max = tl.full([BLOCK_H], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_H], tl.float32)
    b_out = tl.zeros([BLOCK_H, BLOCK_R], tl.float32)
    # To the base 2, in which the hardware exponentiates; float32 under the interpreter too.
    scale_2 = tl.full([], scale, tl.float32) * 1.4426950408889634
    share = tl.cdiv(n_selected, n_splits)
    end = tl.minimum((i_split + 1) * share, n_selected)
    for i_k in range(i_split * share, end, BLOCK_K):
        inside = i_k + o_k < end
        b_index = tl.load(p_indices + i_row * n_selected + i_k + o_k, mask=inside, other=-1)
        chosen = b_index >= 0
        p_rows = p_entries + b_index.to(tl.int64)[:, None] * n_width
        b_cr = tl.load(p_rows + o_r[None, :], mask=chosen[:, None] & ranks[None, :], other=0.0)
        b_cp = tl.load(p_rows + n_rank + o_p[None, :], mask=chosen[:, None] & ropes[None, :],
                       other=0.0)  # fmt: skip
        b_s = (dot(b_qr, tl.trans(b_cr)) + dot(b_qp, tl.trans(b_cp))) * scale_2
        b_s = tl.where(chosen[None, :], b_s, float("-inf"))
        b_next = tl.maximum(b_max, tl.max(b_s, 1))
        # While nothing is chosen yet, −inf − (−inf) must not be NaN.
        b_from = tl.where(b_next == float("-inf"), 0.0, b_next)
        b_e = tl.exp2(b_s - b_from[:, None])
        b_shrink = tl.exp2(b_max - b_from)
        b_sum = b_sum * b_shrink + tl.sum(b_e, 1)
        b_out = b_out * b_shrink[:, None] + dot(b_e.to(b_cr.dtype), b_cr)
        b_max = b_next
    both = heads[:, None] & ranks[None, :]
    if n_splits == 1:
        b_out = b_out / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]
        o_out = (i_row * n_heads + o_h[:, None]) * n_rank + o_r[None, :]
        tl.store(p_latent + o_out, b_out, mask=both)
    else:
        o_part = (i_row * n_splits + i_split) * n_heads + o_h
        tl.store(p_parts + o_part[:, None] * n_rank + o_r[None, :], b_out, mask=both)
        tl.store(p_stats + o_part * 2, b_max, mask=heads)
        tl.store(p_stats + o_part * 2 + 1, b_sum, mask=heads)
