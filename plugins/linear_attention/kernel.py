"""Linear attention in Triton: token by token, or in chunks of tokens by matrix products.

State S [K, V] of a head, log-decay g, keys k, values v, update rate β, query q:

    S ← exp(g)∘S + k ⊗ w,   w = β (v − (exp(g)∘S)ᵀ k)   (without β: w = v),   o = scale · Sᵀ q

In a chunk that starts with the state S, with c_i the sum of g up to row i and a strictly lower
triangular M_ij = Σ_d k_id k_jd exp(c_id − c_jd):

    W = (I + βM)⁻¹ β (V − (K∘exp c) S),   O = scale · ((Q∘exp c) S + scores W),
    S ← exp(c_last)∘S + (K∘exp(c_last − c))ᵀ W,   scores_ij = Σ_d q_id k_jd exp(c_id − c_jd), j ≤ i

What only the keys, queries and decays decide is prepared for all chunks at once; what needs the
state goes over them in order. Every c_i − c_j is summed from the decays between, never a
difference of two sums: no decay is too strong for it, and none makes a later one inexact.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from glm_trt.plugins.common.triton_helpers import INTERPRETED, dot

# Rows of a chunk that are solved and, with a decay a channel, scaled at a time.
ROWS = tl.constexpr(16)


@triton.jit
def _rounded(b, dtype: tl.constexpr):
    """To the nearest of a dtype: for bfloat16, the interpreter alone would truncate."""
    if INTERPRETED and dtype == tl.bfloat16:
        b_bits = b.to(tl.float32).to(tl.uint32, bitcast=True)
        b_bits += 0x7FFF + ((b_bits >> 16) & 1)
        b = (b_bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return b.to(dtype)


@triton.jit
def _scale_of(scale, n_k):
    """The scale of the outputs: 0 stands for 1/√K."""
    b_scale = tl.full([], scale, tl.float32)  # float32 under the interpreter too
    return tl.where(b_scale == 0.0, 1.0 / tl.sqrt(n_k.to(tl.float32)), b_scale)


@triton.jit
def recur_tokens(
    p_query, p_key, p_value, p_past, p_decay, p_beta, p_output, p_present,
    n_tokens, n_heads, n_group, n_k, n_v, n_past, n_decay, n_beta, scale,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_V columns of one head's state, token after token.

    query [B, T, H·group, K], key [B, T, H, K], value [B, T, H, V], past [B, H, K, V] if n_past,
    decay [B, T, n_decay] with a column a head or one a head's channel, beta [B, T, n_beta] with a
    column a head or one in all → output [B, T, H·group, V], present [B, H, K, V], which may be
    past. No decay: n_decay = 0; no beta: n_beta = 0. A scale of 0 is 1/√K.
    """
    i_row = tl.program_id(1).to(tl.int64)
    i_batch, i_head = i_row // n_heads, i_row % n_heads
    o_k = tl.arange(0, BLOCK_K)
    o_v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    ks, vs = o_k < n_k, o_v < n_v
    both = ks[:, None] & vs[None, :]
    i_state = i_row * n_k * n_v
    o_state = o_k[:, None] * n_v + o_v[None, :]
    p_from = p_past + i_state + o_state
    b_state = tl.load(p_from, mask=both & (n_past > 0), other=0.0).to(tl.float32)
    n_own = n_decay // n_heads  # decays of a head: none, one, or one a channel
    o_decay = i_head * n_own + o_k * (n_own > 1)
    o_beta = i_head * (n_beta > 1)
    b_scale = _scale_of(scale, n_k)
    for i_token in range(n_tokens):
        i_t = i_batch * n_tokens + i_token
        i_th = i_t * n_heads + i_head
        b_g = tl.load(p_decay + i_t * n_decay + o_decay, mask=ks & (n_decay > 0), other=0.0)
        b_k = tl.load(p_key + i_th * n_k + o_k, mask=ks, other=0.0).to(tl.float32)
        b_w = tl.load(p_value + i_th * n_v + o_v, mask=vs, other=0.0).to(tl.float32)
        b_state *= tl.exp(b_g.to(tl.float32))[:, None]
        if n_beta > 0:
            b_beta = tl.load(p_beta + i_t * n_beta + o_beta).to(tl.float32)
            b_w = b_beta * (b_w - tl.sum(b_state * b_k[:, None], 0))
        b_state += b_k[:, None] * b_w[None, :]
        for i_group in range(n_group):
            i_q = i_th * n_group + i_group
            b_q = tl.load(p_query + i_q * n_k + o_k, mask=ks, other=0.0).to(tl.float32)
            b_o = tl.sum(b_state * b_q[:, None], 0) * b_scale
            tl.store(p_output + i_q * n_v + o_v, _rounded(b_o, p_output.dtype.element_ty), mask=vs)
    b_state = _rounded(b_state, p_present.dtype.element_ty)
    tl.store(p_present + i_state + o_state, b_state, mask=both)


@triton.jit
def _decayed_products(
    b_left, b_right, b_decay, p_keys, p_gs, n_pitch, n_decay, n_rows, n_k, i_r,
    PER_CHANNEL: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Σ_d left_id k_jd exp(c_id − c_jd) of the ROWS rows i from i_r on → [ROWS, BLOCK_T].

    A decay a head: right has all keys, decay the exponentials [ROWS, BLOCK_T]. A decay a channel:
    right has the keys before i_r, decayed up to there, and decay [ROWS, K] goes on from there; the
    rows' own keys come one by one, their exponentials as products of those of the decays between.
    Above the diagonal the result means nothing.
    """
    if PER_CHANNEL:
        o_i, o_t, o_k = tl.arange(0, ROWS), tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
        b_products = dot(_rounded(b_left * b_decay, b_right.dtype), tl.trans(b_right))
        b_between = tl.full([ROWS, BLOCK_K], 1.0, tl.float32)
        n_own = tl.minimum(n_rows - i_r, ROWS)
        for i in range(n_own):
            i_j = i_r + n_own - 1 - i
            b_k = tl.load(p_keys + i_j * n_pitch + o_k, mask=o_k < n_k, other=0.0)
            later = (o_k < n_k) & (i > 0)
            b_g = tl.load(p_gs + (i_j + 1) * n_decay + o_k, mask=later, other=0.0)
            b_step = b_between * tl.exp(b_g.to(tl.float32))[None, :]
            b_between = tl.where((i_r + o_i > i_j)[:, None], b_step, b_between)
            b_column = tl.sum(b_left * b_between * b_k.to(tl.float32)[None, :], 1)
            b_products = tl.where((o_t == i_j)[None, :], b_column[:, None], b_products)
    else:
        b_products = dot(b_left, tl.trans(b_right)) * b_decay
    return b_products


@triton.jit
def _solve_rows(b_m, b_inverse, b_beta, i_r, BLOCK_T: tl.constexpr):
    """ROWS rows of (I + βM)⁻¹ β, from their βM and the rows before them → [ROWS, BLOCK_T]."""
    o_r, o_t = i_r + tl.arange(0, ROWS), tl.arange(0, BLOCK_T)
    b_x = tl.where(o_r[:, None] == o_t[None, :], b_beta[:, None], 0.0)
    # Blocks of ROWS columns of βM times the rows of the inverse that they stand for.
    o_b = tl.arange(0, BLOCK_T // ROWS) * ROWS
    b_ms = tl.reshape(b_m, [ROWS, BLOCK_T // ROWS, ROWS])
    b_rows = tl.reshape(b_inverse, [BLOCK_T // ROWS, ROWS, BLOCK_T])
    for i_b in range(0, i_r, ROWS):
        b_columns = tl.sum(tl.where((o_b == i_b)[None, :, None], b_ms, 0.0), 1)
        b_x -= dot(b_columns, tl.sum(tl.where((o_b == i_b)[:, None, None], b_rows, 0.0), 0))
    for i in range(ROWS - 1):
        b_column = tl.sum(tl.where((o_t == i_r + i)[None, :], b_m, 0.0), 1)
        b_done = tl.sum(tl.where((o_r == i_r + i)[:, None], b_x, 0.0), 0)
        b_x -= b_column[:, None] * b_done[None, :]
    return b_x


@triton.jit
def prepare_chunks(
    p_query, p_key, p_decay, p_beta, p_inverse, p_scores, p_factors,
    p_scaled_query, p_scaled_key, p_final_key,
    n_tokens, n_heads, n_group, n_k, n_decay, n_beta,
    PER_CHANNEL: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One program: what BLOCK_T tokens of one head need beside values and state.

    Inputs as above → inverse [B·H, chunks, BLOCK_T, BLOCK_T] = (I + βM)⁻¹ β, the identity without
    beta; scores [B·H, chunks, group, BLOCK_T, BLOCK_T]. A decay a head, or none: factors
    [B·H, chunks, 2, BLOCK_T] = exp c and exp(c_last − c). A decay a channel (PER_CHANNEL): factors
    [B·H, chunks, K] = exp c_last; scaled_query [B·H, chunks, group, BLOCK_T, BLOCK_K] and
    scaled_key [B·H, chunks, BLOCK_T, BLOCK_K], the inputs times exp c; final_key, of the latter's
    shape, the key times exp(c_last − c). Without PER_CHANNEL, nothing touches these three.
    """
    i_row = tl.program_id(1).to(tl.int64)
    i_batch, i_head = i_row // n_heads, i_row % n_heads
    i_chunk = i_row * tl.num_programs(0) + tl.program_id(0)
    i_start = tl.program_id(0) * BLOCK_T
    i_first = i_batch * n_tokens + i_start
    # Rows beyond the tokens have q, k, g and β of 0: they add nothing.
    n_rows = tl.minimum(n_tokens - i_start, BLOCK_T)
    o_t, o_k = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    ts, later, ks = o_t < n_rows, o_t + 1 < n_rows, o_k < n_k
    # 64-bit up to the chunk; offsets within it fit 32 bits, and so half the registers.
    n_pitch = n_heads * n_k
    i_keys = (i_first * n_heads + i_head) * n_k
    i_queries = i_keys * n_group
    p_keys = p_key + i_keys
    o_keys = o_t[:, None] * n_pitch + o_k[None, :]
    p_gs = p_decay + i_first * n_decay + i_head * (n_decay // n_heads)
    b_keys = tl.load(p_keys + o_keys, mask=ts[:, None] & ks[None, :], other=0.0)
    if PER_CHANNEL:
        # Of row j: the decay of row j + 1, and of all up to the chunk's end.
        b_next = tl.load(p_gs + (o_t + 1)[:, None] * n_decay + o_k[None, :],
                         mask=later[:, None] & ks[None, :], other=0.0).to(tl.float32)  # fmt: skip
        b_final = _rounded(b_keys * tl.exp(tl.cumsum(b_next, 0, reverse=True)), b_keys.dtype)
        p_tile = p_final_key + i_chunk * BLOCK_T * BLOCK_K
        tl.store(p_tile + o_t[:, None] * BLOCK_K + o_k[None, :], b_final)
        b_before = tl.zeros([BLOCK_K], tl.float32)
    else:
        given = n_decay > 0
        b_g = tl.load(p_gs + o_t * n_decay, mask=ts & given, other=0.0).to(tl.float32)
        b_next = tl.load(p_gs + (o_t + 1) * n_decay, mask=later & given, other=0.0).to(tl.float32)
        p_row = p_factors + i_chunk * 2 * BLOCK_T + o_t
        tl.store(p_row, tl.exp(tl.cumsum(b_g, 0)))
        tl.store(p_row + BLOCK_T, tl.exp(tl.cumsum(b_next, 0, reverse=True)))
    b_inverse = tl.where((o_t[:, None] == o_t[None, :]) & (n_beta == 0), 1.0, 0.0)
    for i_r in range(0, BLOCK_T, ROWS):
        o_r = i_r + tl.arange(0, ROWS)
        rows, lower = o_r < n_rows, o_r[:, None] > o_t[None, :]
        part = rows[:, None] & ks[None, :]
        o_rows = o_r[:, None] * n_pitch + o_k[None, :]
        b_k = tl.load(p_keys + o_rows, mask=part, other=0.0)
        if PER_CHANNEL:
            p_rows = p_gs + o_r[:, None] * n_decay + o_k[None, :]
            b_gs = tl.load(p_rows, mask=part, other=0.0).to(tl.float32)
            b_c = tl.cumsum(b_gs, 0)
            b_decay, b_scale = tl.exp(b_c), tl.exp(b_before[None, :] + b_c)
            o_scaled = o_r[:, None] * BLOCK_K + o_k[None, :]
            p_tile = p_scaled_key + i_chunk * BLOCK_T * BLOCK_K
            tl.store(p_tile + o_scaled, _rounded(b_k * b_scale, b_k.dtype))
            b_before += tl.sum(b_gs, 0)
            b_up_to = tl.cumsum(tl.where((o_t + 1 < i_r)[:, None], b_next, 0.0), 0, reverse=True)
            b_right = tl.where((o_t < i_r)[:, None], b_keys * tl.exp(b_up_to), 0.0)
            b_right = _rounded(b_right, b_keys.dtype)
        else:
            b_gs = tl.load(p_gs + o_r * n_decay, mask=rows & given, other=0.0).to(tl.float32)
            b_up_to = tl.cumsum(tl.where(o_t + 1 < i_r, b_next, 0.0), 0, reverse=True)
            b_c = tl.cumsum(tl.where(lower, b_gs[:, None], 0.0), 0)
            b_decay, b_right = tl.exp(b_c + b_up_to[None, :]), b_keys
        if n_beta > 0:
            b_beta = tl.load(p_beta + i_first * n_beta + i_head * (n_beta > 1) + o_r * n_beta,
                             mask=rows, other=0.0).to(tl.float32)  # fmt: skip
            b_m = _decayed_products(b_k, b_right, b_decay, p_keys, p_gs, n_pitch, n_decay,
                                    n_rows, n_k, i_r, PER_CHANNEL, BLOCK_K, BLOCK_T)  # fmt: skip
            b_m = tl.where(lower, b_m * b_beta[:, None], 0.0)
            b_x = _solve_rows(b_m, b_inverse, b_beta, i_r, BLOCK_T)
            b_x = tl.broadcast_to(b_x[None, :, :], [BLOCK_T // ROWS, ROWS, BLOCK_T])
            b_x = tl.reshape(b_x, [BLOCK_T, BLOCK_T])
            b_inverse = tl.where((o_t // ROWS == i_r // ROWS)[:, None], b_x, b_inverse)
        for i_group in range(n_group):
            i_q = i_queries + i_group * n_k
            o_q = o_r[:, None] * n_group * n_pitch + o_k[None, :]
            b_q = tl.load(p_query + i_q + o_q, mask=part, other=0.0)
            if PER_CHANNEL:
                p_tile = p_scaled_query + (i_chunk * n_group + i_group) * BLOCK_T * BLOCK_K
                tl.store(p_tile + o_scaled, _rounded(b_q * b_scale, b_q.dtype))
            b_s = _decayed_products(b_q, b_right, b_decay, p_keys, p_gs, n_pitch, n_decay,
                                    n_rows, n_k, i_r, PER_CHANNEL, BLOCK_K, BLOCK_T)  # fmt: skip
            p_tile = p_scores + (i_chunk * n_group + i_group) * BLOCK_T * BLOCK_T
            b_s = tl.where(o_r[:, None] >= o_t[None, :], b_s, 0.0)
            tl.store(p_tile + o_r[:, None] * BLOCK_T + o_t[None, :], _rounded(b_s, b_keys.dtype))
    if PER_CHANNEL:
        tl.store(p_factors + i_chunk * n_k + o_k, tl.exp(b_before), mask=ks)
    p_tile = p_inverse + i_chunk * BLOCK_T * BLOCK_T
    tl.store(p_tile + o_t[:, None] * BLOCK_T + o_t[None, :], _rounded(b_inverse, b_keys.dtype))


@triton.jit
def scan_chunks(
    p_query, p_key, p_final_key, p_value, p_past, p_inverse, p_scores, p_factors,
    p_output, p_present,
    n_tokens, n_heads, n_group, n_k, n_v, n_past, n_beta, scale,
    PER_CHANNEL: tl.constexpr, ONE_QUERY: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_V columns of one head's state, chunk after chunk.

    Query, key and final key: those that prepare_chunks scaled if PER_CHANNEL, else the inputs, with
    the key for the final key. ONE_QUERY: group is 1; without a loop inside that over chunks, the
    latter's loads run ahead. The others as above → output, present (may be past).
    """
    i_row = tl.program_id(1).to(tl.int64)
    i_batch, i_head = i_row // n_heads, i_row % n_heads
    o_t, o_k = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    o_v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    ks, vs = o_k < n_k, o_v < n_v
    both = ks[:, None] & vs[None, :]
    i_state = i_row * n_k * n_v
    o_state = o_k[:, None] * n_v + o_v[None, :]
    p_from = p_past + i_state + o_state
    b_state = tl.load(p_from, mask=both & (n_past > 0), other=0.0).to(tl.float32)
    # 64-bit up to the chunk; offsets within it fit 32 bits, and so half the registers.
    o_tile = o_t[:, None] * BLOCK_T + o_t[None, :]
    o_key = o_t[:, None] * (n_heads * n_k) + o_k[None, :]
    o_value = o_t[:, None] * (n_heads * n_v) + o_v[None, :]
    o_query = o_t[:, None] * (n_heads * n_group * n_k) + o_k[None, :]
    o_scaled = o_t[:, None] * BLOCK_K + o_k[None, :]
    o_output = o_t[:, None] * (n_heads * n_group * n_v) + o_v[None, :]
    b_scale = _scale_of(scale, n_k)
    n_chunks = tl.cdiv(n_tokens, BLOCK_T)
    for i in range(n_chunks):
        i_chunk = i_row * n_chunks + i
        ts = i * BLOCK_T + o_t < n_tokens
        i_th = (i_batch * n_tokens + i * BLOCK_T) * n_heads + i_head
        keys, values = ts[:, None] & ks[None, :], ts[:, None] & vs[None, :]
        if PER_CHANNEL:
            b_k = tl.load(p_key + i_chunk * BLOCK_T * BLOCK_K + o_scaled)
        else:
            b_k = tl.load(p_key + i_th * n_k + o_key, mask=keys, other=0.0)
        b_v = tl.load(p_value + i_th * n_v + o_value, mask=values, other=0.0)
        b_inverse = tl.load(p_inverse + i_chunk * BLOCK_T * BLOCK_T + o_tile)
        b_from = _rounded(b_state, b_k.dtype)
        b_found = dot(b_k, b_from)
        if not PER_CHANNEL:
            p_row = p_factors + i_chunk * 2 * BLOCK_T
            b_c = tl.load(p_row + o_t)
            b_found *= b_c[:, None]
        # Without beta nothing is subtracted, not even 0 · ∞.
        b_error = b_v - tl.where(n_beta > 0, b_found, 0.0)
        b_w = dot(b_inverse, _rounded(b_error, b_k.dtype))
        for i_group in range(1 if ONE_QUERY else n_group):
            i_q, i_s = i_th * n_group + i_group, i_chunk * n_group + i_group
            if PER_CHANNEL:
                b_o = dot(tl.load(p_query + i_s * BLOCK_T * BLOCK_K + o_scaled), b_from)
            else:
                b_q = tl.load(p_query + i_q * n_k + o_query, mask=keys, other=0.0)
                b_o = dot(b_q, b_from) * b_c[:, None]
            b_s = tl.load(p_scores + i_s * BLOCK_T * BLOCK_T + o_tile)
            b_o = (b_o + dot(b_s, _rounded(b_w, b_k.dtype))) * b_scale
            b_o = _rounded(b_o, b_k.dtype)
            tl.store(p_output + i_q * n_v + o_output, b_o, mask=values)
        if PER_CHANNEL:
            b_k = tl.load(p_final_key + i_chunk * BLOCK_T * BLOCK_K + o_scaled)
            b_state *= tl.load(p_factors + i_chunk * n_k + o_k, mask=ks, other=0.0)[:, None]
        else:
            b_w *= tl.load(p_row + BLOCK_T + o_t)[:, None]
            b_state *= tl.load(p_row + BLOCK_T - 1)
        b_state += dot(tl.trans(b_k), _rounded(b_w, b_k.dtype))
    b_state = _rounded(b_state, p_present.dtype.element_ty)
    tl.store(p_present + i_state + o_state, b_state, mask=both)
