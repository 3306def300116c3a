"""MoE experts in Triton: a path for few tokens, and one that sorts them by expert."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.pairs import count_pairs, sort_pairs, sum_slots
from glm_trt.plugins.common.triton_helpers import dot

__all__ = [
    "count_pairs",
    "down_tiles",
    "down_tokens",
    "gate_up_pairs",
    "gate_up_tiles",
    "sort_pairs",
    "sum_slots",
]


@triton.jit
def gate_up_pairs(
    p_x, p_indices, p_gate_up, p_inner, n_slots, n_hidden, n_inner,
    BLOCK_I: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_I rows of one (token, slot) pair: silu(gate x) · up x → inner [T·k, I]."""
    i_pair = tl.program_id(0).to(tl.int64)
    o_i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    o_h = tl.arange(0, BLOCK_H)
    i_expert = tl.load(p_indices + i_pair).to(tl.int64)
    p_row = p_x + (i_pair // n_slots) * n_hidden
    p_gate = p_gate_up + (i_expert * 2 * n_inner + o_i[:, None]) * n_hidden
    p_up = p_gate + n_inner.to(tl.int64) * n_hidden
    # Sums along hidden stay apart until the end: one reduction, not one a block.
    b_gate = tl.zeros([BLOCK_I, BLOCK_H], tl.float32)
    b_up = tl.zeros([BLOCK_I, BLOCK_H], tl.float32)
    for i_h in range(0, n_hidden, BLOCK_H):
        inside = i_h + o_h < n_hidden
        both = (o_i[:, None] < n_inner) & inside[None, :]
        b_x = tl.load(p_row + i_h + o_h, mask=inside, other=0.0).to(tl.float32)[None, :]
        b_gate += tl.load(p_gate + (i_h + o_h)[None, :], mask=both, other=0.0).to(tl.float32) * b_x
        b_up += tl.load(p_up + (i_h + o_h)[None, :], mask=both, other=0.0).to(tl.float32) * b_x
    b_g, b_u = tl.sum(b_gate, 1), tl.sum(b_up, 1)
    tl.store(p_inner + i_pair * n_inner + o_i, b_g * tl.sigmoid(b_g) * b_u, mask=o_i < n_inner)


@triton.jit
def down_tokens(
    p_inner, p_indices, p_weights, p_down, p_y, n_slots, n_hidden, n_inner,
    BLOCK_H: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_H outputs of one token, its experts in the order of their slots."""
    i_token = tl.program_id(0).to(tl.int64)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    o_i = tl.arange(0, BLOCK_I)
    b_y = tl.zeros([BLOCK_H], tl.float32)
    for i_slot in range(n_slots):
        i_pair = i_token * n_slots + i_slot
        i_expert = tl.load(p_indices + i_pair).to(tl.int64)
        p_rows = p_down + (i_expert * n_hidden + o_h[:, None]) * n_inner
        b_part = tl.zeros([BLOCK_H, BLOCK_I], tl.float32)
        for i_i in range(0, n_inner, BLOCK_I):
            inside = i_i + o_i < n_inner
            b_inner = tl.load(p_inner + i_pair * n_inner + i_i + o_i, mask=inside, other=0.0)
            both = (o_h[:, None] < n_hidden) & inside[None, :]
            b_w = tl.load(p_rows + (i_i + o_i)[None, :], mask=both, other=0.0)
            b_part += b_w.to(tl.float32) * b_inner[None, :]
        b_y += tl.load(p_weights + i_pair) * tl.sum(b_part, 1)
    tl.store(p_y + i_token * n_hidden + o_h, b_y, mask=o_h < n_hidden)


@triton.jit
def gate_up_tiles(
    p_x, p_gate_up, p_sorted, p_tiles, p_inner, n_slots, hidden_units, inner_units,
    UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M pairs of one expert × BLOCK_N inner columns → inner [T·k, I].

    Sizes come in units of UNIT elements: where that is 16, loads along them can be wide.
    """
    n_hidden, n_inner = hidden_units * UNIT, inner_units * UNIT
    p_tile = p_tiles + tl.program_id(1) * 3
    i_expert = tl.load(p_tile).to(tl.int64)
    if i_expert >= 0:
        o_m = tl.load(p_tile + 1) + tl.arange(0, BLOCK_M)
        rows = o_m < tl.load(p_tile + 2)
        b_pair = tl.load(p_sorted + o_m, mask=rows, other=0).to(tl.int64)
        o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        columns = o_n < n_inner
        o_h = tl.arange(0, BLOCK_H)
        p_rows = p_x + (b_pair // n_slots)[:, None] * n_hidden
        p_gate = p_gate_up + (i_expert * 2 * n_inner + o_n[None, :]) * n_hidden
        p_up = p_gate + n_inner.to(tl.int64) * n_hidden
        b_gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        b_up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for i_h in range(0, n_hidden, BLOCK_H):
            inside = i_h + o_h < n_hidden
            b_x = tl.load(p_rows + (i_h + o_h)[None, :], mask=rows[:, None] & inside[None, :],
                          other=0.0)  # fmt: skip
            both = inside[:, None] & columns[None, :]
            b_gate += dot(b_x, tl.load(p_gate + (i_h + o_h)[:, None], mask=both, other=0.0))
            b_up += dot(b_x, tl.load(p_up + (i_h + o_h)[:, None], mask=both, other=0.0))
        b_inner = b_gate * tl.sigmoid(b_gate) * b_up
        tl.store(p_inner + b_pair[:, None] * n_inner + o_n[None, :], b_inner,
                 mask=rows[:, None] & columns[None, :])  # fmt: skip


@triton.jit
def down_tiles(
    p_inner, p_down, p_weights, p_sorted, p_tiles, p_parts, hidden_units, inner_units,
    UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M pairs of one expert × BLOCK_N outputs, weighted → parts.

    parts [T·k, hidden]; sizes in units of UNIT elements, as above.
    """
    n_hidden, n_inner = hidden_units * UNIT, inner_units * UNIT
    p_tile = p_tiles + tl.program_id(1) * 3
    i_expert = tl.load(p_tile).to(tl.int64)
    if i_expert >= 0:
        o_m = tl.load(p_tile + 1) + tl.arange(0, BLOCK_M)
        rows = o_m < tl.load(p_tile + 2)
        b_pair = tl.load(p_sorted + o_m, mask=rows, other=0).to(tl.int64)
        o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        columns = o_n < n_hidden
        o_i = tl.arange(0, BLOCK_I)
        p_rows = p_inner + b_pair[:, None] * n_inner
        p_columns = p_down + (i_expert * n_hidden + o_n[None, :]) * n_inner
        b_y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for i_i in range(0, n_inner, BLOCK_I):
            inside = i_i + o_i < n_inner
            b_a = tl.load(p_rows + (i_i + o_i)[None, :], mask=rows[:, None] & inside[None, :],
                          other=0.0)  # fmt: skip
            b_b = tl.load(p_columns + (i_i + o_i)[:, None],
                          mask=inside[:, None] & columns[None, :], other=0.0)  # fmt: skip
            b_y += dot(b_a, b_b)
        b_weight = tl.load(p_weights + b_pair, mask=rows, other=0.0)
        tl.store(p_parts + b_pair[:, None] * n_hidden + o_n[None, :], b_y * b_weight[:, None],
                 mask=rows[:, None] & columns[None, :])  # fmt: skip
