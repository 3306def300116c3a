"""NVFP4 MoE experts in Triton: by pairs for few tokens, by tiles of sorted pairs for more."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.formats import e4m3, nvfp4_sums, nvfp4_values
from glm_trt.plugins.common.pairs import count_pairs, sort_pairs, sum_slots
from glm_trt.plugins.common.triton_helpers import dot

__all__ = [
    "count_pairs",
    "nvfp4_down_tiles",
    "nvfp4_down_tokens",
    "nvfp4_gate_up_pairs",
    "nvfp4_gate_up_tiles",
    "sort_pairs",
    "sum_slots",
]


@triton.jit
def nvfp4_gate_up_pairs(
    p_x, p_indices, p_gate_up, p_scale, p_global, p_inner, n_slots, hidden_units, inner_units,
    UNIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N rows of one (token, slot) pair: silu(gate x) · up x → inner [T·k, I]."""
    n_hidden, n_inner = hidden_units * UNIT, inner_units * UNIT
    i_pair = tl.program_id(0).to(tl.int64)
    i_expert = tl.load(p_indices + i_pair).to(tl.int64)
    # Gate and up rows by turns: one sum for both.
    o_row = tl.arange(0, 2 * BLOCK_N)
    o_n = tl.program_id(1) * BLOCK_N + o_row // 2
    rows = (o_n < n_inner)[:, None]
    o_w = ((i_expert * 2 + o_row % 2) * n_inner + o_n)[:, None]
    o_k, o_b = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2)
    o_g = tl.arange(0, BLOCK_K // 16)
    p_row = p_x + (i_pair // n_slots) * n_hidden
    p_rows, p_scales = p_gate_up + o_w * (n_hidden // 2), p_scale + o_w * (n_hidden // 16)
    b_sums = tl.zeros([2 * BLOCK_N, BLOCK_K // 16], tl.float32)
    for i_k in range(0, n_hidden, BLOCK_K):
        b_x = tl.load(p_row + i_k + o_k, mask=i_k + o_k < n_hidden, other=0.0).to(tl.float32)
        b_w = tl.load(p_rows + (i_k // 2 + o_b)[None, :],
                      mask=rows & (i_k // 2 + o_b < n_hidden // 2)[None, :], other=0)  # fmt: skip
        b_scale = tl.load(p_scales + (i_k // 16 + o_g)[None, :],
                          mask=rows & (i_k // 16 + o_g < n_hidden // 16)[None, :],
                          other=0)  # fmt: skip
        b_sums += nvfp4_sums(b_w, b_x) * e4m3(b_scale, False).to(tl.float32)
    b_gate, b_up = tl.split(tl.reshape(tl.sum(b_sums, 1), [BLOCK_N, 2]))
    b_gate *= tl.load(p_global + i_expert * 2)
    b_up *= tl.load(p_global + i_expert * 2 + 1)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(p_inner + i_pair * n_inner + o_n, b_gate * tl.sigmoid(b_gate) * b_up,
             mask=o_n < n_inner)  # fmt: skip


@triton.jit
def nvfp4_down_tokens(
    p_inner, p_indices, p_weights, p_down, p_scale, p_global, p_y,
    n_slots, hidden_units, inner_units,
    UNIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of one token, its experts in the order of their slots."""
    n_hidden, n_inner = hidden_units * UNIT, inner_units * UNIT
    i_token = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = (o_n < n_hidden)[:, None]
    o_k, o_b = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2)
    o_g = tl.arange(0, BLOCK_K // 16)
    b_y = tl.zeros([BLOCK_N], tl.float32)
    for i_slot in range(n_slots):
        i_pair = i_token * n_slots + i_slot
        i_expert = tl.load(p_indices + i_pair).to(tl.int64)
        o_w = i_expert * n_hidden + o_n[:, None]
        p_rows, p_scales = p_down + o_w * (n_inner // 2), p_scale + o_w * (n_inner // 16)
        b_sums = tl.zeros([BLOCK_N, BLOCK_K // 16], tl.float32)
        for i_k in range(0, n_inner, BLOCK_K):
            b_inner = tl.load(p_inner + i_pair * n_inner + i_k + o_k, mask=i_k + o_k < n_inner,
                              other=0.0)  # fmt: skip
            b_w = tl.load(p_rows + (i_k // 2 + o_b)[None, :],
                          mask=rows & (i_k // 2 + o_b < n_inner // 2)[None, :],
                          other=0)  # fmt: skip
            b_scale = tl.load(p_scales + (i_k // 16 + o_g)[None, :],
                              mask=rows & (i_k // 16 + o_g < n_inner // 16)[None, :],
                              other=0)  # fmt: skip
            b_sums += nvfp4_sums(b_w, b_inner) * e4m3(b_scale, False).to(tl.float32)
        b_y += tl.load(p_weights + i_pair) * tl.load(p_global + i_expert) * tl.sum(b_sums, 1)
    tl.store(p_y + i_token * n_hidden + o_n, b_y, mask=o_n < n_hidden)


@triton.jit
def nvfp4_gate_up_tiles(
    p_x, p_gate_up, p_scale, p_global, p_sorted, p_tiles, p_inner,
    n_slots, hidden_units, inner_units,
    UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N inner columns of BLOCK_M pairs of one expert → inner [T·k, I]."""
    n_hidden, n_inner = hidden_units * UNIT, inner_units * UNIT
    p_tile = p_tiles + tl.program_id(1) * 3
    i_expert = tl.load(p_tile).to(tl.int64)
    if i_expert >= 0:
        o_m = tl.load(p_tile + 1) + tl.arange(0, BLOCK_M)
        there = o_m < tl.load(p_tile + 2)
        b_pair = tl.load(p_sorted + o_m, mask=there, other=0).to(tl.int64)
        o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        rows = (o_n < n_inner)[:, None]
        o_k, o_b = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2)
        o_g = tl.arange(0, BLOCK_K // 16)
        p_pairs = p_x + (b_pair // n_slots)[None, :] * n_hidden
        o_w = i_expert * 2 * n_inner + o_n[:, None]
        p_gate, p_scales = p_gate_up + o_w * (n_hidden // 2), p_scale + o_w * (n_hidden // 16)
        p_up = p_gate + n_inner.to(tl.int64) * (n_hidden // 2)
        p_up_scales = p_scales + n_inner.to(tl.int64) * (n_hidden // 16)
        b_gate = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        b_up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for i_k in range(0, n_hidden, BLOCK_K):
            b_x = tl.load(p_pairs + (i_k + o_k)[:, None],
                          mask=(i_k + o_k < n_hidden)[:, None] & there[None, :],
                          other=0.0)  # fmt: skip
            o_bytes, o_scales = (i_k // 2 + o_b)[None, :], (i_k // 16 + o_g)[None, :]
            bytes_ = rows & (o_bytes < n_hidden // 2)
            scales = rows & (o_scales < n_hidden // 16)
            b_w = tl.load(p_gate + o_bytes, mask=bytes_, other=0)
            b_s = tl.load(p_scales + o_scales, mask=scales, other=0)
            b_gate += dot(nvfp4_values(b_w, b_s).to(b_x.dtype), b_x)
            b_w = tl.load(p_up + o_bytes, mask=bytes_, other=0)
            b_s = tl.load(p_up_scales + o_scales, mask=scales, other=0)
            b_up += dot(nvfp4_values(b_w, b_s).to(b_x.dtype), b_x)
        b_gate *= tl.load(p_global + i_expert * 2)
        b_up *= tl.load(p_global + i_expert * 2 + 1)
        tl.store(p_inner + b_pair[None, :] * n_inner + o_n[:, None],
                 b_gate * tl.sigmoid(b_gate) * b_up, mask=rows & there[None, :])  # fmt: skip


@triton.jit
def nvfp4_down_tiles(
    p_inner, p_down, p_scale, p_global, p_weights, p_sorted, p_tiles, p_parts,
    hidden_units, inner_units,
    UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of BLOCK_M pairs of one expert, weighted → parts.

    parts [T·k, hidden].
    """
    n_hidden, n_inner = hidden_units * UNIT, inner_units * UNIT
    p_tile = p_tiles + tl.program_id(1) * 3
    i_expert = tl.load(p_tile).to(tl.int64)
    if i_expert >= 0:
        o_m = tl.load(p_tile + 1) + tl.arange(0, BLOCK_M)
        there = o_m < tl.load(p_tile + 2)
        b_pair = tl.load(p_sorted + o_m, mask=there, other=0).to(tl.int64)
        o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        rows = (o_n < n_hidden)[:, None]
        o_k, o_b = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2)
        o_g = tl.arange(0, BLOCK_K // 16)
        p_pairs = p_inner + b_pair[None, :] * n_inner
        o_w = i_expert * n_hidden + o_n[:, None]
        p_rows, p_scales = p_down + o_w * (n_inner // 2), p_scale + o_w * (n_inner // 16)
        b_y = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for i_k in range(0, n_inner, BLOCK_K):
            b_a = tl.load(p_pairs + (i_k + o_k)[:, None],
                          mask=(i_k + o_k < n_inner)[:, None] & there[None, :],
                          other=0.0)  # fmt: skip
            b_w = tl.load(p_rows + (i_k // 2 + o_b)[None, :],
                          mask=rows & (i_k // 2 + o_b < n_inner // 2)[None, :],
                          other=0)  # fmt: skip
            b_s = tl.load(p_scales + (i_k // 16 + o_g)[None, :],
                          mask=rows & (i_k // 16 + o_g < n_inner // 16)[None, :],
                          other=0)  # fmt: skip
            b_y += dot(nvfp4_values(b_w, b_s).to(b_a.dtype), b_a)
        b_weight = tl.load(p_weights + b_pair, mask=there, other=0.0) * tl.load(p_global + i_expert)
        tl.store(p_parts + b_pair[None, :] * n_hidden + o_n[:, None], b_y * b_weight[None, :],
                 mask=rows & there[None, :])  # fmt: skip
