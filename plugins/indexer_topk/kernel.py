"""Indexer top-k in Triton: scores of the visible positions, then an exact ordered selection.

The selection is a radix select over the scores as unsigned integers in the same order: eight bits
at a time it finds the last score that is taken. A second look takes what is above that, and of its
equals the first. It works on integers alone, so it does not depend on who counted what.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.triton_helpers import dot


@triton.jit
def score_positions(
    p_query, p_keys, p_weights, p_past, p_scores, n_length, n_heads, n_width, n_capacity, scale,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_C positions of QUERIES queries of a sequence → scores [B·S, C].

    Σ_h w_h · relu(q_h·k · scale). Only visible positions are written, and the products
    [QUERIES · BLOCK_H, BLOCK_C] never leave the program.
    """
    n_blocks = tl.cdiv(n_length, QUERIES)
    i_block = tl.program_id(1).to(tl.int64)
    i_batch = i_block // n_blocks
    i_query = i_block % n_blocks * QUERIES
    past = tl.load(p_past + i_batch)
    # What the last of these queries sees; never more than the capacity, whatever `past` says.
    visible = tl.minimum(past + tl.minimum(i_query + QUERIES, n_length), n_capacity)
    first = tl.program_id(0) * BLOCK_C
    if first < visible:
        o_m, o_d = tl.arange(0, QUERIES * BLOCK_H), tl.arange(0, BLOCK_D)
        o_c = first + tl.arange(0, BLOCK_C)
        o_s, o_h = i_query + o_m // BLOCK_H, o_m % BLOCK_H
        widths, seen = o_d < n_width, o_c < visible
        heads = (o_h < n_heads) & (o_s < n_length)
        o_head = (i_batch * n_length + o_s) * n_heads + o_h
        b_q = tl.load(p_query + o_head[:, None] * n_width + o_d[None, :],
                      mask=heads[:, None] & widths[None, :], other=0.0)  # fmt: skip
        o_key = (i_batch * n_capacity + o_c[None, :]) * n_width + o_d[:, None]
        b_k = tl.load(p_keys + o_key, mask=widths[:, None] & seen[None, :], other=0.0)
        b_w = tl.load(p_weights + o_head, mask=heads, other=0.0)
        b_dots = tl.maximum(dot(b_q, b_k) * scale, 0.0) * b_w[:, None]
        b_scores = tl.sum(tl.reshape(b_dots, [QUERIES, BLOCK_H, BLOCK_C]), 1)
        o_s = i_query + tl.arange(0, QUERIES)
        sees = (o_s < n_length)[:, None] & (o_c[None, :] < past + o_s[:, None] + 1)
        o_score = (i_batch * n_length + o_s[:, None]) * n_capacity + o_c[None, :]
        tl.store(p_scores + o_score, b_scores, mask=sees & seen[None, :])


@triton.jit
def ordered_bits(scores):
    """float32 → uint32 in the same order, equal for equal scores: −0 + 0 is +0."""
    bits = (scores + 0.0).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def visible_positions(p_past, i_row, n_length, n_capacity):
    """How many positions a query sees."""
    visible = tl.load(p_past + i_row // n_length) + i_row % n_length + 1
    return tl.minimum(visible, n_capacity).to(tl.int32)


@triton.jit
def chunk_of(i_chunk, n_chunks, visible, BLOCK_C: tl.constexpr):
    """First and end of one of `n_chunks` shares of the visible positions, in whole blocks."""
    share = tl.cdiv(tl.cdiv(visible, n_chunks), BLOCK_C) * BLOCK_C
    first = tl.minimum(i_chunk * share, visible)
    return first, tl.minimum(first + share, visible)


@triton.jit
def count_digits(p_row, first, end, prefix, PASS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Scores in [first, end) by their eight bits of this pass, where those before are `prefix`."""
    b_count = tl.zeros([256], tl.int32)
    for i_c in range(first, end, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        inside = o_c < end
        bits = ordered_bits(tl.load(p_row + o_c, mask=inside, other=0.0))
        if PASS > 0:
            inside = inside & (bits >> (32 - 8 * PASS) == prefix)
        b_digit = ((bits >> (24 - 8 * PASS)) & 0xFF).to(tl.int32)
        b_count += tl.histogram(b_digit, 256, mask=inside)
    return b_count


@triton.jit
def last_digit(b_count, wanted):
    """The largest digit from which on there are `wanted`; how many of that digit are wanted."""
    o_digit = tl.arange(0, 256)
    b_from = tl.sum(b_count, 0) - tl.cumsum(b_count, 0) + b_count
    digit = tl.max(tl.where(b_from >= wanted, o_digit, 0), 0)
    return digit, wanted - tl.sum(tl.where(o_digit > digit, b_count, 0), 0)


@triton.jit
def write_chosen(p_row, p_out, first, end, last, wanted, taken, equals, BLOCK_C: tl.constexpr):
    """Positions in [first, end) above the score `last`, and its equals while they are wanted.

    `taken` positions stand before these in the output; `equals` equals of `last` were met.
    """
    for i_c in range(first, end, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        inside = o_c < end
        bits = ordered_bits(tl.load(p_row + o_c, mask=inside, other=0.0))
        equal = (inside & (bits == last)).to(tl.int32)
        rank = equals + tl.cumsum(equal, 0)
        take = (inside & (bits > last)) | ((equal != 0) & (rank <= wanted))
        count = take.to(tl.int32)
        tl.store(p_out + taken + tl.cumsum(count, 0) - 1, o_c, mask=take)
        taken += tl.sum(count, 0)
        equals += tl.sum(equal, 0)


@triton.jit
def write_all(p_out, first, step, visible, n_selected, BLOCK_C: tl.constexpr):
    """All visible positions, then −1: a block of the output at `first` and every `step` on."""
    for i_c in range(first, n_selected, step):
        o_c = i_c + tl.arange(0, BLOCK_C)
        tl.store(p_out + o_c, tl.where(o_c < visible, o_c, -1), mask=o_c < n_selected)


@triton.jit
def select_positions(
    p_past, p_scores, p_indices, n_length, n_capacity, n_selected, BLOCK_C: tl.constexpr
):
    """One program: one query's `n_selected` best visible positions, ascending, then −1."""
    i_row = tl.program_id(0).to(tl.int64)
    visible = visible_positions(p_past, i_row, n_length, n_capacity)
    p_row, p_out = p_scores + i_row * n_capacity, p_indices + i_row * n_selected
    if visible <= n_selected:
        write_all(p_out, 0, BLOCK_C, visible, n_selected, BLOCK_C)
    else:
        last = tl.zeros([], tl.uint32)
        wanted = n_selected
        for i_pass in tl.static_range(4):
            b_count = count_digits(p_row, 0, visible, last, i_pass, BLOCK_C)
            digit, wanted = last_digit(b_count, wanted)
            last = (last << 8) | digit.to(tl.uint32)
        none = tl.zeros([], tl.int32)
        write_chosen(p_row, p_out, 0, visible, last, wanted, none, none, BLOCK_C)


@triton.jit
def load_counts(p_counts, i_row, n_chunks, PASS: tl.constexpr, CHUNKS: tl.constexpr):
    """What all chunks of a query counted in a pass, of counts [B·S, 4, chunks, 256]."""
    o_n, o_digit = tl.arange(0, CHUNKS), tl.arange(0, 256)
    o_count = ((i_row * 4 + PASS) * n_chunks + o_n[:, None]) * 256 + o_digit[None, :]
    return tl.load(p_counts + o_count, mask=(o_n < n_chunks)[:, None], other=0)


@triton.jit
def count_chunk(
    p_past, p_scores, p_counts, p_found, n_length, n_capacity, n_selected, n_chunks,
    BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    """One program: pass PASS of a query's radix select over one chunk of its visible positions.

    → counts [B·S, 4, chunks, 256], and what the passes before found → found [B·S, 4, chunks, 3]:
    the leading bits of the last score taken, how many that start with them are wanted, and how
    many in this chunk are above. Every chunk finds that out for itself; none waits for another.
    """
    i_row = tl.program_id(1).to(tl.int64)
    i_chunk = tl.program_id(0)
    visible = visible_positions(p_past, i_row, n_length, n_capacity)
    if visible > n_selected:
        last = tl.zeros([], tl.uint32)
        wanted = n_selected
        above = tl.zeros([], tl.int32)
        if PASS > 1:
            # Not where this pass writes: other threads may read after one has written.
            p_before = p_found + ((i_row * 4 + PASS - 1) * n_chunks + i_chunk) * 3
            last = tl.load(p_before).to(tl.uint32, bitcast=True)
            wanted = tl.load(p_before + 1)
            above = tl.load(p_before + 2)
        if PASS > 0:
            b_counts = load_counts(p_counts, i_row, n_chunks, PASS - 1, CHUNKS)
            digit, wanted = last_digit(tl.sum(b_counts, 0), wanted)
            last = (last << 8) | digit.to(tl.uint32)
            mine = (tl.arange(0, CHUNKS) == i_chunk)[:, None]
            larger = (tl.arange(0, 256) > digit)[None, :]
            above += tl.sum(tl.where(mine & larger, b_counts, 0))
            p_after = p_found + ((i_row * 4 + PASS) * n_chunks + i_chunk) * 3
            tl.store(p_after, last.to(tl.int32, bitcast=True))
            tl.store(p_after + 1, wanted)
            tl.store(p_after + 2, above)
        first, end = chunk_of(i_chunk, n_chunks, visible, BLOCK_C)
        b_count = count_digits(p_scores + i_row * n_capacity, first, end, last, PASS, BLOCK_C)
        o_count = ((i_row * 4 + PASS) * n_chunks + i_chunk) * 256 + tl.arange(0, 256)
        tl.store(p_counts + o_count, b_count)


@triton.jit
def select_chunk(
    p_past, p_scores, p_counts, p_found, p_indices, n_length, n_capacity, n_selected, n_chunks,
    BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One program: what one chunk of a query's visible positions adds to indices [B·S, K]."""
    i_row = tl.program_id(1).to(tl.int64)
    i_chunk = tl.program_id(0)
    visible = visible_positions(p_past, i_row, n_length, n_capacity)
    p_out = p_indices + i_row * n_selected
    if visible <= n_selected:
        write_all(p_out, i_chunk * BLOCK_C, n_chunks * BLOCK_C, visible, n_selected, BLOCK_C)
    else:
        o_n, o_digit = tl.arange(0, CHUNKS), tl.arange(0, 256)
        p_chunks = p_found + (i_row * 4 + 3) * n_chunks * 3
        p_mine = p_chunks + i_chunk * 3
        b_counts = load_counts(p_counts, i_row, n_chunks, 3, CHUNKS)
        digit, wanted = last_digit(tl.sum(b_counts, 0), tl.load(p_mine + 1))
        last = (tl.load(p_mine).to(tl.uint32, bitcast=True) << 8) | digit.to(tl.uint32)
        b_above = tl.load(p_chunks + o_n * 3 + 2, mask=o_n < n_chunks, other=0)
        b_above += tl.sum(tl.where((o_digit > digit)[None, :], b_counts, 0), 1)
        b_equal = tl.sum(tl.where((o_digit == digit)[None, :], b_counts, 0), 1)
        equals = tl.sum(tl.where(o_n < i_chunk, b_equal, 0), 0)
        taken = tl.sum(tl.where(o_n < i_chunk, b_above, 0), 0) + tl.minimum(equals, wanted)
        first, end = chunk_of(i_chunk, n_chunks, visible, BLOCK_C)
        p_row = p_scores + i_row * n_capacity
        write_chosen(p_row, p_out, first, end, last, wanted, taken, equals, BLOCK_C)
