"""Attention that several programs share: each takes a part of the entries, this puts them together.

A part is not yet divided: its sums of values, its largest score and its sum of exponentials, both
to the base 2. A part of nothing has the score −inf and the sum 0.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def combine_splits(
    p_parts, p_stats, p_latent, n_rows, n_rank, n_splits,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, MOST_SPLITS: tl.constexpr,
):  # fmt: skip
    """One program: one row's splits, BLOCK_S at a time in order → latent [groups, rows, R].

    parts [groups, splits, rows, R], stats [groups, splits, rows, 2]; a part of nothing is not read.
    """
    i_group = tl.program_id(1).to(tl.int64)
    i_row = tl.program_id(0)
    o_r, o_all = tl.arange(0, BLOCK_R), tl.arange(0, MOST_SPLITS)
    p_scores = p_stats + ((i_group * n_splits + o_all) * n_rows + i_row) * 2
    largest = tl.max(tl.load(p_scores, mask=o_all < n_splits, other=float("-inf")), 0)
    largest = tl.where(largest == float("-inf"), 0.0, largest)  # nothing in any part
    total = tl.zeros([], tl.float32)
    b_out = tl.zeros([BLOCK_R], tl.float32)
    for i_s in range(0, n_splits, BLOCK_S):
        o_s = i_s + tl.arange(0, BLOCK_S)
        splits = o_s < n_splits
        o_part = (i_group * n_splits + o_s) * n_rows + i_row
        b_score = tl.load(p_stats + o_part * 2, mask=splits, other=float("-inf"))
        b_sum = tl.load(p_stats + o_part * 2 + 1, mask=splits, other=0.0)
        b_weight = tl.exp2(b_score - largest)
        read = (b_weight != 0.0)[:, None] & (o_r < n_rank)[None, :]
        b_part = tl.load(p_parts + o_part[:, None] * n_rank + o_r[None, :], mask=read, other=0.0)
        total += tl.sum(b_weight * b_sum, 0)
        b_out += tl.sum(b_weight[:, None] * b_part, 0)
    b_out = b_out / tl.where(total == 0.0, 1.0, total)
    tl.store(p_latent + (i_group * n_rows + i_row) * n_rank + o_r, b_out, mask=o_r < n_rank)
