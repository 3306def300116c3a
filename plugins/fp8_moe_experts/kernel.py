"""FP8 MoE experts in Triton: by pairs for few tokens, by tiles of sorted pairs for more."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.formats import e4m3, fp8_sums
from glm_trt.plugins.common.pairs import count_pairs, sort_pairs, sum_slots
from glm_trt.plugins.common.triton_helpers import dot

__all__ = [
    "count_pairs",
    "fp8_down_tiles",
    "fp8_down_tokens",
    "fp8_gate_up_pairs",
    "fp8_gate_up_tiles",
    "sort_pairs",
    "sum_slots",
]


@triton.jit
def fp8_gate_up_pairs(
    p_x, p_indices, p_gate_up, p_scale, p_inner, n_slots, n_hidden, n_inner,
    HARDWARE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N rows of one (token, slot) pair: silu(gate x) · up x → inner [T·k, I]."""
    i_pair = tl.program_id(0).to(tl.int64)
    i_expert = tl.load(p_indices + i_pair).to(tl.int64)
    # Gate and up rows by turns: one sum for both.
    o_row = tl.arange(0, 2 * BLOCK_N)
    o_n = tl.program_id(1) * BLOCK_N + o_row // 2
    o_half = i_expert * 2 + o_row % 2
    rows = (o_n < n_inner)[:, None]
    o_k, o_g = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 16)
    n_groups = tl.cdiv(n_hidden, 128)
    p_row = p_x + (i_pair // n_slots) * n_hidden
    p_rows = p_gate_up + (o_half * n_inner + o_n)[:, None] * n_hidden
    p_scales = p_scale + (o_half * tl.cdiv(n_inner, 128) + o_n // 128)[:, None] * n_groups
    b_sums = tl.zeros([2 * BLOCK_N, BLOCK_K // 16], tl.float32)
    for i_k in range(0, n_hidden, BLOCK_K):
        inside = i_k + o_k < n_hidden
        b_x = tl.load(p_row + i_k + o_k, mask=inside, other=0.0).to(tl.float32)
        b_w = tl.load(p_rows + (i_k + o_k)[None, :], mask=rows & inside[None, :], other=0)
        o_scale = (i_k + o_g * 16) // 128
        b_scale = tl.load(p_scales + o_scale[None, :], mask=rows & (o_scale < n_groups)[None, :],
                          other=0.0)  # fmt: skip
        b_sums += fp8_sums(b_w, b_x, HARDWARE) * b_scale
    b_gate, b_up = tl.split(tl.reshape(tl.sum(b_sums, 1), [BLOCK_N, 2]))
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(p_inner + i_pair * n_inner + o_n, b_gate * tl.sigmoid(b_gate) * b_up,
             mask=o_n < n_inner)  # fmt: skip


@triton.jit
def fp8_down_tokens(
    p_inner, p_indices, p_weights, p_down, p_scale, p_y, n_slots, n_hidden, n_inner,
    HARDWARE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of one token, its experts in the order of their slots."""
    i_token = tl.program_id(0).to(tl.int64)
    i_row = tl.program_id(1) * BLOCK_N
    o_n = i_row + tl.arange(0, BLOCK_N)
    o_k, o_g = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 16)
    n_groups = tl.cdiv(n_inner, 128)
    b_y = tl.zeros([BLOCK_N], tl.float32)
    for i_slot in range(n_slots):
        i_pair = i_token * n_slots + i_slot
        i_expert = tl.load(p_indices + i_pair).to(tl.int64)
        p_rows = p_down + (i_expert * n_hidden + o_n[:, None]) * n_inner
        p_scales = p_scale + (i_expert * tl.cdiv(n_hidden, 128) + i_row // 128) * n_groups
        b_sums = tl.zeros([BLOCK_N, BLOCK_K // 16], tl.float32)
        for i_k in range(0, n_inner, BLOCK_K):
            inside = i_k + o_k < n_inner
            b_inner = tl.load(p_inner + i_pair * n_inner + i_k + o_k, mask=inside, other=0.0)
            both = (o_n < n_hidden)[:, None] & inside[None, :]
            b_w = tl.load(p_rows + (i_k + o_k)[None, :], mask=both, other=0)
            o_scale = (i_k + o_g * 16) // 128
            b_scale = tl.load(p_scales + o_scale, mask=o_scale < n_groups, other=0.0)
            b_sums += fp8_sums(b_w, b_inner, HARDWARE) * b_scale[None, :]
        b_y += tl.load(p_weights + i_pair) * tl.sum(b_sums, 1)
    tl.store(p_y + i_token * n_hidden + o_n, b_y, mask=o_n < n_hidden)


@triton.jit
def fp8_gate_up_tiles(
    p_x, p_gate_up, p_scale, p_sorted, p_tiles, p_inner, n_slots, hidden_units, inner_units,
    UNIT: tl.constexpr, HARDWARE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N inner columns of BLOCK_M pairs of one expert → inner [T·k, I].

    The weight is the left operand: what is decoded in registers may stay there.
    """
    n_hidden, n_inner = hidden_units * UNIT, inner_units * UNIT
    p_tile = p_tiles + tl.program_id(1) * 3
    i_expert = tl.load(p_tile).to(tl.int64)
    if i_expert >= 0:
        o_m = tl.load(p_tile + 1) + tl.arange(0, BLOCK_M)
        pairs = o_m < tl.load(p_tile + 2)
        b_pair = tl.load(p_sorted + o_m, mask=pairs, other=0).to(tl.int64)
        i_row = tl.program_id(0) * BLOCK_N
        o_n = i_row + tl.arange(0, BLOCK_N)
        rows = (o_n < n_inner)[:, None]
        o_k = tl.arange(0, BLOCK_K)
        n_groups = tl.cdiv(n_hidden, 128)
        n_scales = tl.cdiv(n_inner, 128) * n_groups
        p_pairs = p_x + (b_pair // n_slots)[None, :] * n_hidden
        p_gate = p_gate_up + (i_expert * 2 * n_inner + o_n[:, None]) * n_hidden
        p_up = p_gate + n_inner.to(tl.int64) * n_hidden
        p_scales = p_scale + i_expert * 2 * n_scales + (i_row // 128) * n_groups
        b_gate = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        b_up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for i_k in range(0, n_hidden, BLOCK_K):
            inside = i_k + o_k < n_hidden
            both = rows & inside[None, :]
            b_x = tl.load(p_pairs + (i_k + o_k)[:, None], mask=inside[:, None] & pairs[None, :],
                          other=0.0)  # fmt: skip
            b_w = tl.load(p_gate + (i_k + o_k)[None, :], mask=both, other=0)
            # Scales meet float32 sums: the operands are exact.
            b_part = dot(e4m3(b_w, HARDWARE).to(b_x.dtype), b_x)
            b_gate += b_part * tl.load(p_scales + i_k // 128)
            b_w = tl.load(p_up + (i_k + o_k)[None, :], mask=both, other=0)
            b_part = dot(e4m3(b_w, HARDWARE).to(b_x.dtype), b_x)
            b_up += b_part * tl.load(p_scales + n_scales + i_k // 128)
        tl.store(p_inner + b_pair[None, :] * n_inner + o_n[:, None],
                 b_gate * tl.sigmoid(b_gate) * b_up, mask=rows & pairs[None, :])  # fmt: skip


@triton.jit
def fp8_down_tiles(
    p_inner, p_down, p_scale, p_weights, p_sorted, p_tiles, p_parts, hidden_units, inner_units,
    UNIT: tl.constexpr, HARDWARE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of BLOCK_M pairs of one expert, weighted → parts.

    parts [T·k, hidden].
    """
    n_hidden, n_inner = hidden_units * UNIT, inner_units * UNIT
    p_tile = p_tiles + tl.program_id(1) * 3
    i_expert = tl.load(p_tile).to(tl.int64)
    if i_expert >= 0:
        o_m = tl.load(p_tile + 1) + tl.arange(0, BLOCK_M)
        pairs = o_m < tl.load(p_tile + 2)
        b_pair = tl.load(p_sorted + o_m, mask=pairs, other=0).to(tl.int64)
        i_row = tl.program_id(0) * BLOCK_N
        o_n = i_row + tl.arange(0, BLOCK_N)
        rows = (o_n < n_hidden)[:, None]
        o_k = tl.arange(0, BLOCK_K)
        n_groups = tl.cdiv(n_inner, 128)
        p_pairs = p_inner + b_pair[None, :] * n_inner
        p_rows = p_down + (i_expert * n_hidden + o_n[:, None]) * n_inner
        p_scales = p_scale + (i_expert * tl.cdiv(n_hidden, 128) + i_row // 128) * n_groups
        b_y = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for i_k in range(0, n_inner, BLOCK_K):
            inside = i_k + o_k < n_inner
            b_a = tl.load(p_pairs + (i_k + o_k)[:, None], mask=inside[:, None] & pairs[None, :],
                          other=0.0)  # fmt: skip
            b_w = tl.load(p_rows + (i_k + o_k)[None, :], mask=rows & inside[None, :], other=0)
            b_part = dot(e4m3(b_w, HARDWARE).to(b_a.dtype), b_a)
            b_y += b_part * tl.load(p_scales + i_k // 128)
        b_weight = tl.load(p_weights + b_pair, mask=pairs, other=0.0)
        tl.store(p_parts + b_pair[None, :] * n_hidden + o_n[:, None], b_y * b_weight[None, :],
                 mask=rows & pairs[None, :])  # fmt: skip
