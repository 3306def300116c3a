"""Causal MLA in Triton: online softmax over all entries that a query sees."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.splits import combine_splits
from glm_trt.plugins.common.triton_helpers import dot

__all__ = ["attend_causal", "combine_splits"]

# Entries of a share, at the least: what a part costs is worth that much.
LEAST_SHARE = tl.constexpr(64)


@triton.jit
def attend_causal(
    p_query, p_cache, p_past, p_latent, p_parts, p_stats,
    n_length, n_heads, n_width, n_rank, n_capacity, n_splits, scale,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    MIXED: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M rows (s, h) of a sequence over its share of what the last of them sees.

    One split: the share is everything, → latent [B, S·H, R]. Several: → parts and stats, as
    `combine_splits` takes them; of an empty share only the stats are written. MIXED: the rows may
    be of several tokens, of which the first do not see all.
    """
    i_batch = tl.program_id(2).to(tl.int64)
    i_split = tl.program_id(1)
    n_rows = n_length * n_heads
    # The rows that see most, whose programs take longest, start first.
    i_first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    o_m, o_r, o_p = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    rows, ranks, ropes = i_first + o_m < n_rows, o_r < n_rank, n_rank + o_p < n_width
    # One address in 64 bits, offsets in the block in 32: a vector of addresses costs registers.
    p_rows = p_query + (i_batch * n_rows + i_first) * n_width + o_m[:, None] * n_width
    b_qr = tl.load(p_rows + o_r[None, :], mask=rows[:, None] & ranks[None, :], other=0.0)
    b_qp = tl.load(p_rows + n_rank + o_p[None, :], mask=rows[:, None] & ropes[None, :], other=0.0)
    # What the last row sees; never more than the capacity, whatever `past` says.
    past = tl.minimum(tl.load(p_past + i_batch), n_capacity).to(tl.int32)
    i_last = tl.minimum(i_first + BLOCK_M, n_rows) - 1
    visible = tl.minimum(past + i_last // n_heads + 1, n_capacity)
    b_position = past + (i_first + o_m) // n_heads
    share = tl.maximum(tl.cdiv(tl.cdiv(visible, n_splits), BLOCK_K) * BLOCK_K, LEAST_SHARE)
    first = tl.minimum(i_split * share, visible)
    end = tl.minimum(first + share, visible)
    p_entries = p_cache + i_batch * n_capacity * n_width
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_out = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    # To the base 2, in which the hardware exponentiates; float32 under the interpreter too.
    scale_2 = tl.full([], scale, tl.float32) * 1.4426950408889634
    for i_k in range(first, end, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        inside = o_k < end
        p_block = p_entries + o_k.to(tl.int64)[:, None] * n_width
        b_cr = tl.load(p_block + o_r[None, :], mask=inside[:, None] & ranks[None, :], other=0.0)
        b_cp = tl.load(p_block + n_rank + o_p[None, :], mask=inside[:, None] & ropes[None, :],
                       other=0.0)  # fmt: skip
        b_s = (dot(b_qr, tl.trans(b_cr)) + dot(b_qp, tl.trans(b_cp))) * scale_2
        seen = inside[None, :]
        if MIXED:
            seen = seen & (o_k[None, :] <= b_position[:, None])
            # What a row does not see may be infinite or NaN, and 0 times that is NaN.
            b_cr = tl.where(tl.abs(b_cr) < float("inf"), b_cr, 0.0)
        b_s = tl.where(seen, b_s, float("-inf"))
        b_next = tl.maximum(b_max, tl.max(b_s, 1))
        b_from = b_next
        if MIXED:  # while a row has seen nothing, −inf − (−inf) must not be NaN
            b_from = tl.where(b_next == float("-inf"), 0.0, b_next)
        b_e = tl.exp2(b_s - b_from[:, None])
        b_shrink = tl.exp2(b_max - b_from)
        b_sum = b_sum * b_shrink + tl.sum(b_e, 1)
        b_out = b_out * b_shrink[:, None] + dot(b_e.to(b_cr.dtype), b_cr)
        b_max = b_next
    both = rows[:, None] & ranks[None, :]
    o_out = o_m[:, None] * n_rank + o_r[None, :]
    if n_splits == 1:
        b_out = b_out / b_sum[:, None]
        tl.store(p_latent + (i_batch * n_rows + i_first) * n_rank + o_out, b_out, mask=both)
    else:
        i_part = (i_batch * n_splits + i_split) * n_rows + i_first
        tl.store(p_parts + i_part * n_rank + o_out, b_out, mask=both & (first < end))
        tl.store(p_stats + (i_part + o_m) * 2, b_max, mask=rows)
        tl.store(p_stats + (i_part + o_m) * 2 + 1, b_sum, mask=rows)
