"""NVFP4 linear layers in Triton: rows for few tokens, tiles on tensor cores for more."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.formats import e4m3, nvfp4_sums, nvfp4_values
from glm_trt.plugins.common.triton_helpers import dot


@triton.jit
def nvfp4_linear_rows(
    p_x, p_weight, p_scale, p_global, p_y, n_out, in_units,
    UNIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of one token → y [T, out]."""
    n_in = in_units * UNIT
    i_token = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = (o_n < n_out)[:, None]
    o_k, o_b = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2)
    o_g = tl.arange(0, BLOCK_K // 16)
    p_rows = p_weight + o_n.to(tl.int64)[:, None] * (n_in // 2)
    p_scales = p_scale + o_n.to(tl.int64)[:, None] * (n_in // 16)
    b_sums = tl.zeros([BLOCK_N, BLOCK_K // 16], tl.float32)
    for i_k in range(0, n_in, BLOCK_K):
        b_x = tl.load(p_x + i_token * n_in + i_k + o_k, mask=i_k + o_k < n_in, other=0.0)
        b_w = tl.load(p_rows + (i_k // 2 + o_b)[None, :],
                      mask=rows & (i_k // 2 + o_b < n_in // 2)[None, :], other=0)  # fmt: skip
        b_scale = tl.load(p_scales + (i_k // 16 + o_g)[None, :],
                          mask=rows & (i_k // 16 + o_g < n_in // 16)[None, :], other=0)  # fmt: skip
        b_sums += nvfp4_sums(b_w, b_x.to(tl.float32)) * e4m3(b_scale, False).to(tl.float32)
    b_y = tl.sum(b_sums, 1) * tl.load(p_global)
    tl.store(p_y + i_token * n_out + o_n, b_y, mask=o_n < n_out)


@triton.jit
def nvfp4_linear_tiles(
    p_x, p_weight, p_scale, p_global, p_y, n_tokens, n_out, in_units,
    UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N outputs of BLOCK_M tokens → y [T, out]."""
    n_in = in_units * UNIT
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    rows, tokens = (o_n < n_out)[:, None], (o_m < n_tokens)[None, :]
    o_k, o_b = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2)
    o_g = tl.arange(0, BLOCK_K // 16)
    p_rows = p_weight + o_n.to(tl.int64)[:, None] * (n_in // 2)
    p_scales = p_scale + o_n.to(tl.int64)[:, None] * (n_in // 16)
    p_tokens = p_x + o_m[None, :] * n_in
    b_y = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for i_k in range(0, n_in, BLOCK_K):
        b_x = tl.load(p_tokens + (i_k + o_k)[:, None],
                      mask=(i_k + o_k < n_in)[:, None] & tokens, other=0.0)  # fmt: skip
        b_w = tl.load(p_rows + (i_k // 2 + o_b)[None, :],
                      mask=rows & (i_k // 2 + o_b < n_in // 2)[None, :], other=0)  # fmt: skip
        b_scale = tl.load(p_scales + (i_k // 16 + o_g)[None, :],
                          mask=rows & (i_k // 16 + o_g < n_in // 16)[None, :], other=0)  # fmt: skip
        b_y += dot(nvfp4_values(b_w, b_scale).to(b_x.dtype), b_x)
    b_y *= tl.load(p_global)
    tl.store(p_y + o_m[None, :] * n_out + o_n[:, None], b_y, mask=rows & tokens)
