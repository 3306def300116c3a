"""Indexer top-k in Triton: scores of the visible positions, then an exact ordered selection."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.triton_helpers import dot


@triton.jit
def score_positions(
    p_query, p_keys, p_weights, p_past, p_scores, n_length, n_heads, n_width, n_capacity, scale,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_C positions of one query: Σ_h w_h · relu(q_h·k · scale) → scores [B·S, C].

    Only visible positions are written. Heads never leave the program.
    """
    i_row = tl.program_id(1).to(tl.int64)
    i_batch = i_row // n_length
    visible = tl.load(p_past + i_batch) + i_row % n_length + 1
    first = tl.program_id(0) * BLOCK_C
    if first < visible:
        o_h, o_d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
        o_c = first + tl.arange(0, BLOCK_C)
        heads, widths = o_h < n_heads, o_d < n_width
        seen = (o_c < visible) & (o_c < n_capacity)
        b_q = tl.load(p_query + (i_row * n_heads + o_h[:, None]) * n_width + o_d[None, :],
                      mask=heads[:, None] & widths[None, :], other=0.0)  # fmt: skip
        o_key = (i_batch * n_capacity + o_c[None, :]) * n_width + o_d[:, None]
        b_k = tl.load(p_keys + o_key, mask=widths[:, None] & seen[None, :], other=0.0)
        b_w = tl.load(p_weights + i_row * n_heads + o_h, mask=heads, other=0.0)
        b_dots = tl.maximum(dot(b_q, b_k) * scale, 0.0)
        b_scores = tl.sum(b_dots * b_w[:, None], 0)
        # −0 + 0 is +0: equal scores then have equal bits.
        tl.store(p_scores + i_row * n_capacity + o_c, b_scores + 0.0, mask=seen)


@triton.jit
def ordered_bits(scores):
    """float32 → uint32 in the same order."""
    bits = scores.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def select_positions(
    p_past, p_scores, p_indices, n_length, n_capacity, n_selected, BLOCK_C: tl.constexpr
):
    """One program: one query's `n_selected` best visible positions, ascending, then −1.

    A radix select finds the bits of the last score that is taken, eight at a time; a second look
    takes what is above it, and of its equals the first.
    """
    i_row = tl.program_id(0).to(tl.int64)
    visible = (tl.load(p_past + i_row // n_length) + i_row % n_length + 1).to(tl.int32)
    visible = tl.minimum(visible, n_capacity)
    p_row, p_out = p_scores + i_row * n_capacity, p_indices + i_row * n_selected
    o_c = tl.arange(0, BLOCK_C)
    if visible <= n_selected:
        for i_c in range(0, n_selected, BLOCK_C):
            o = i_c + o_c
            tl.store(p_out + o, tl.where(o < visible, o, -1), mask=o < n_selected)
    else:
        o_digit = tl.arange(0, 256)
        prefix = tl.zeros([], tl.uint32)
        wanted = n_selected
        for i_pass in tl.static_range(4):
            shift = 24 - 8 * i_pass
            b_count = tl.zeros([256], tl.int32)
            for i_c in range(0, visible, BLOCK_C):
                inside = i_c + o_c < visible
                bits = ordered_bits(tl.load(p_row + i_c + o_c, mask=inside, other=0.0))
                if i_pass > 0:
                    inside = inside & (bits >> (shift + 8) == prefix)
                b_digit = ((bits >> shift) & 0xFF).to(tl.int32)
                b_count += tl.histogram(b_digit, 256, mask=inside)
            # How many have this digit or a larger one; the last digit where that is enough.
            b_from = tl.sum(b_count, 0) - tl.cumsum(b_count, 0) + b_count
            digit = tl.max(tl.where(b_from >= wanted, o_digit, 0), 0)
            wanted -= tl.sum(tl.where(o_digit > digit, b_count, 0), 0)
            prefix = (prefix << 8) | digit.to(tl.uint32)
        taken = tl.zeros([], tl.int32)
        equals = tl.zeros([], tl.int32)
        for i_c in range(0, visible, BLOCK_C):
            inside = i_c + o_c < visible
            bits = ordered_bits(tl.load(p_row + i_c + o_c, mask=inside, other=0.0))
            equal = (inside & (bits == prefix)).to(tl.int32)
            rank = equals + tl.cumsum(equal, 0)
            take = (inside & (bits > prefix)) | ((equal != 0) & (rank <= wanted))
            count = take.to(tl.int32)
            o_out = taken + tl.cumsum(count, 0) - 1
            tl.store(p_out + o_out, i_c + o_c, mask=take)
            taken += tl.sum(count, 0)
            equals += tl.sum(equal, 0)
