"""FP8 linear layers in Triton: rows for few tokens, tiles on tensor cores for more."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.formats import e4m3, fp8_sums, round_to_e4m3
from glm_trt.plugins.common.triton_helpers import dot


@triton.jit
def quantize_tokens(p_x, p_quantized, p_scale, n_tokens, n_in, BLOCK_G: tl.constexpr):
    """One program: BLOCK_G groups of one token → e4m3 values [T, in], scales [⌈in/128⌉, T].

    Every e4m3 value is one of x's dtype too.
    """
    i_token = tl.program_id(0).to(tl.int64)
    o_g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    o_k = o_g[:, None] * 128 + tl.arange(0, 128)[None, :]
    b_x = tl.load(p_x + i_token * n_in + o_k, mask=o_k < n_in, other=0.0).to(tl.float32)
    b_scale = tl.div_rn(tl.maximum(tl.max(tl.abs(b_x), 1), 1e-10), 448.0)
    b_q = round_to_e4m3(tl.div_rn(b_x, tl.broadcast_to(b_scale[:, None], b_x.shape)))
    tl.store(p_quantized + i_token * n_in + o_k, b_q, mask=o_k < n_in)
    tl.store(p_scale + o_g * n_tokens + i_token, b_scale, mask=o_g < tl.cdiv(n_in, 128))


@triton.jit
def fp8_linear_rows(
    p_x, p_x_scale, p_weight, p_scale, p_y, quantized, n_tokens, n_out, n_in,
    HARDWARE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of one token → y [T, out]. `quantized`: x has scales."""
    i_token = tl.program_id(0).to(tl.int64)
    i_row = tl.program_id(1) * BLOCK_N
    o_n = i_row + tl.arange(0, BLOCK_N)
    o_k, o_g = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 16)
    n_groups = tl.cdiv(n_in, 128)
    p_rows = p_weight + o_n.to(tl.int64)[:, None] * n_in
    b_sums = tl.zeros([BLOCK_N, BLOCK_K // 16], tl.float32)
    for i_k in range(0, n_in, BLOCK_K):
        inside = i_k + o_k < n_in
        both = (o_n < n_out)[:, None] & inside[None, :]
        b_x = tl.load(p_x + i_token * n_in + i_k + o_k, mask=inside, other=0.0).to(tl.float32)
        b_w = tl.load(p_rows + (i_k + o_k)[None, :], mask=both, other=0)
        # A scale for each 16, which is what is summed at once.
        o_scale = (i_k + o_g * 16) // 128
        there = o_scale < n_groups
        b_scale = tl.load(p_scale + (i_row // 128) * n_groups + o_scale, mask=there, other=0.0)
        b_scale *= tl.load(p_x_scale + o_scale * n_tokens + i_token,
                           mask=there & (quantized != 0), other=1.0)  # fmt: skip
        b_sums += fp8_sums(b_w, b_x, HARDWARE) * b_scale[None, :]
    tl.store(p_y + i_token * n_out + o_n, tl.sum(b_sums, 1), mask=o_n < n_out)


@triton.jit
def fp8_linear_tiles(
    p_x, p_x_scale, p_weight, p_scale, p_y, quantized, n_tokens, n_out, in_units,
    UNIT: tl.constexpr, HARDWARE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of BLOCK_M tokens → y [T, out].

    The weight is the left operand: what is decoded in registers may stay there.
    """
    n_in = in_units * UNIT
    i_row = tl.program_id(0) * BLOCK_N
    o_n = i_row + tl.arange(0, BLOCK_N)
    o_m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    o_k = tl.arange(0, BLOCK_K)
    rows, tokens = o_n < n_out, o_m < n_tokens
    n_groups = tl.cdiv(n_in, 128)
    p_rows = p_weight + o_n.to(tl.int64)[:, None] * n_in
    p_tokens = p_x + o_m[None, :] * n_in
    b_y = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for i_k in range(0, n_in, BLOCK_K):
        inside = i_k + o_k < n_in
        b_w = tl.load(p_rows + (i_k + o_k)[None, :], mask=rows[:, None] & inside[None, :], other=0)
        b_x = tl.load(p_tokens + (i_k + o_k)[:, None], mask=inside[:, None] & tokens[None, :],
                      other=0.0)  # fmt: skip
        i_group = i_k // 128
        b_scale = tl.load(p_x_scale + i_group * n_tokens + o_m, mask=tokens & (quantized != 0),
                          other=1.0)  # fmt: skip
        b_scale *= tl.load(p_scale + (i_row // 128) * n_groups + i_group)
        # Scales meet float32 sums: the operands are exact.
        b_y += dot(e4m3(b_w, HARDWARE).to(b_x.dtype), b_x) * b_scale[None, :]
    tl.store(p_y + o_m[None, :] * n_out + o_n[:, None], b_y, mask=rows[:, None] & tokens[None, :])
