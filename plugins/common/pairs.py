"""Pairs of a token and one of its experts: sorting them by expert, and summing what they became."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_pairs(p_indices, p_counts, n_pairs, BLOCK_P: tl.constexpr):
    """One program: how many pairs one expert has → counts [E]."""
    i_expert = tl.program_id(0)
    o_p = tl.arange(0, BLOCK_P)
    b_count = tl.zeros([BLOCK_P], tl.int32)
    for i_p in range(0, n_pairs, BLOCK_P):
        b_e = tl.load(p_indices + i_p + o_p, mask=i_p + o_p < n_pairs, other=-1)
        b_count += (b_e == i_expert).to(tl.int32)
    tl.store(p_counts + i_expert, tl.sum(b_count, 0))


@triton.jit
def sort_pairs(
    p_indices, p_counts, p_sorted, p_tiles, n_pairs, n_experts, n_tiles, n_rows,
    BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One program: one expert's pairs, in order, after those of the experts before it.

    sorted [T·k]; tiles of at most n_rows pairs [n_tiles, 3]: expert (−1: no work), first and last+1
    row in `sorted`.
    """
    i_expert = tl.program_id(0)
    o_e = tl.arange(0, BLOCK_E)
    b_counts = tl.load(p_counts + o_e, mask=o_e < n_experts, other=0)
    b_tiles = (b_counts + n_rows - 1) // n_rows
    first = tl.sum(tl.where(o_e < i_expert, b_counts, 0), 0)
    first_tile = tl.sum(tl.where(o_e < i_expert, b_tiles, 0), 0)
    count = tl.load(p_counts + i_expert)
    tiles = (count + n_rows - 1) // n_rows
    for i_tile in range(tiles):
        p_tile = p_tiles + (first_tile + i_tile) * 3
        tl.store(p_tile, i_expert)
        tl.store(p_tile + 1, first + i_tile * n_rows)
        tl.store(p_tile + 2, tl.minimum(first + (i_tile + 1) * n_rows, first + count))
    if i_expert == n_experts - 1:
        for i_tile in range(first_tile + tiles, n_tiles):
            tl.store(p_tiles + i_tile * 3, -1)
    o_p = tl.arange(0, BLOCK_P)
    done = first
    for i_p in range(0, n_pairs, BLOCK_P):
        b_e = tl.load(p_indices + i_p + o_p, mask=i_p + o_p < n_pairs, other=-1)
        mine = (b_e == i_expert).to(tl.int32)
        o_sorted = done + tl.cumsum(mine, 0) - 1
        tl.store(p_sorted + o_sorted, i_p + o_p, mask=mine != 0)
        done += tl.sum(mine, 0)


@triton.jit
def sum_slots(p_parts, p_y, n_slots, n_hidden, BLOCK_H: tl.constexpr):
    """One program: BLOCK_H outputs of one token: its parts in the order of their slots."""
    i_token = tl.program_id(0).to(tl.int64)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    b_y = tl.zeros([BLOCK_H], tl.float32)
    for i_slot in range(n_slots):
        p_part = p_parts + (i_token * n_slots + i_slot) * n_hidden
        b_y += tl.load(p_part + o_h, mask=o_h < n_hidden, other=0.0).to(tl.float32)
    tl.store(p_y + i_token * n_hidden + o_h, b_y, mask=o_h < n_hidden)
