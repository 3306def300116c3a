"""Causal depthwise convolution with a carried state in Triton."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def convolve(
    p_input, p_weight, p_bias, p_past, p_output, p_present,
    n_channels, n_length, n_width, has_bias, has_past, silu,
    BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_C channels at BLOCK_L positions or more; the first: their state too.

    input [B, C, L], weight [C, 1, K], bias [C] if has_bias, past [B, C, K − 1] if has_past →
    output [B, C, L], present [B, C, K − 1]: the last columns of past and input. Present may be
    past: of a channel's programs only the first reads the one and writes the other, so it takes all
    the positions that need past, however wide the convolution.
    """
    i_batch = tl.program_id(2).to(tl.int64)
    i_l = tl.program_id(1)
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    o_l = tl.arange(0, BLOCK_L)
    channels = o_c < n_channels
    o_row = i_batch * n_channels + o_c
    n_state = n_width - 1
    p_rows = p_input + (o_row * n_length)[:, None]
    p_states = p_past + (o_row * n_state)[:, None]
    b_bias = tl.load(p_bias + o_c, mask=channels & (has_bias != 0), other=0.0).to(tl.float32)
    n_first = tl.maximum(tl.cdiv(n_state, BLOCK_L), 1)  # blocks of the first program
    begin = tl.where(i_l == 0, 0, n_first + i_l - 1) * BLOCK_L
    end = tl.minimum((n_first + i_l) * BLOCK_L, n_length)
    for i_first in range(begin, end, BLOCK_L):
        inside = channels[:, None] & (i_first + o_l < n_length)[None, :]
        b_sum = tl.zeros([BLOCK_C, BLOCK_L], tl.float32) + b_bias[:, None]
        for i_k in range(n_width):
            b_w = tl.load(p_weight + o_c.to(tl.int64) * n_width + i_k, mask=channels, other=0.0)
            o_x = (i_first + o_l + i_k - n_state)[None, :]
            b_x = tl.load(p_rows + o_x, mask=inside & (o_x >= 0), other=0.0).to(tl.float32)
            if i_l == 0:
                before = inside & (o_x < 0) & (has_past != 0)
                b_x += tl.load(p_states + n_state + o_x, mask=before, other=0.0).to(tl.float32)
            b_sum += b_w.to(tl.float32)[:, None] * b_x
        if silu != 0:
            b_sum *= tl.sigmoid(b_sum)
        tl.store(p_output + (o_row * n_length)[:, None] + i_first + o_l[None, :], b_sum,
                 mask=inside)  # fmt: skip
    if i_l == 0:
        for i_first in range(0, n_state, BLOCK_L):
            o_s = (i_first + o_l)[None, :]
            inside = channels[:, None] & (o_s < n_state)
            o_x = o_s + n_length - n_state
            b_x = tl.load(p_rows + o_x, mask=inside & (o_x >= 0), other=0.0)
            before = inside & (o_x < 0) & (has_past != 0)
            b_past = tl.load(p_states + n_state + o_x, mask=before, other=0.0)
            # No thread writes what another one of this program has still to read.
            tl.debug_barrier()
            tl.store(p_present + (o_row * n_state)[:, None] + o_s,
                     tl.where(o_x < 0, b_past, b_x), mask=inside)  # fmt: skip
