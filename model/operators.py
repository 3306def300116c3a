"""What a decoder block asks of its platform: the operators that export and plugins may replace.

The eager definitions below are plain PyTorch. `glm_trt.plugins` offers the same set as
registered torch operators, so one model definition is traced, run eagerly and run on kernels.
Nothing here imports a plugin: the model runs alone, in float64 too. A plugin's reference is slow,
written for one operator and in float32; it shares with this file what it does not check.
Letters in shapes: B batch, S new tokens, C cache capacity, T = B·S tokens, E experts,
k experts a token, K selected positions, H heads, D head width, R latent rank, I expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_trt.model import linear_rules
from glm_trt.model.dequantize import BLOCK, dequantize_fp8, dequantize_nvfp4

Product: TypeAlias = "Callable[[Tensor], Tensor]"
SLICE_NUMBERS = 1 << 20  # of a weight, dequantised at once
SCORES_AT_ONCE = 1 << 26  # of attention and indexers


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 where the whole model runs in float64 (the yardstick)."""
    return x if x.dtype == torch.float64 else x.float()


def positions_of(past_lengths: Tensor, length: int) -> Tensor:
    """Positions [B, S] of `length` new tokens that follow `past_lengths` [B] cached ones."""
    steps = torch.arange(length, dtype=past_lengths.dtype, device=past_lengths.device)
    return past_lengths.unsqueeze(1) + steps


def first_largest(scores: Tensor, count: int) -> Tensor:
    """Indices [..., count] of the largest scores, best first; ties go to the smaller index."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :count]


class EagerOperators:
    """The operators in plain PyTorch, as transformers' `glm_moe_dsa` computes them."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """weight · cast(x · rsqrt(mean x² + ε)): the mean in float32, the product in x's dtype."""
        wide = at_least_float32(x)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * normed.to(x.dtype)

    def rotary_embedding(self, x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        """Rotate the pairs (x₂ᵢ, x₂ᵢ₊₁) of the first 2·width(cos) entries of each head, in place.

        x [B, S, heads·D], cos and sin [B, S, rope/2] in x's dtype → [B, S, heads·D].
        The rotated pair stays where it was (transformers moves the halves side by side; the same
        permutation of queries and keys leaves every dot product unchanged).
        """
        batch, length, _ = x.shape
        heads_of_x = x.reshape(batch, length, heads, -1)
        width = 2 * cos.shape[-1]
        pairs = heads_of_x[..., :width].unflatten(-1, (-1, 2))
        even, odd = pairs[..., 0], pairs[..., 1]
        c, s = cos.unsqueeze(2), sin.unsqueeze(2)
        rotated = torch.stack([even * c - odd * s, odd * c + even * s], dim=-1).flatten(-2)
        return torch.cat([rotated, heads_of_x[..., width:]], dim=-1).flatten(-2)

    def update_cache(self, cache: Tensor, update: Tensor, past_lengths: Tensor) -> Tensor:
        """A copy of cache [B, 1, C, D] with update [B, 1, S, D] written from `past_lengths` [B]."""
        rows = positions_of(past_lengths, update.shape[2])
        index = rows[:, None, :, None].expand_as(update)
        return cache.scatter(2, index, update)

    def moe_routing(
        self,
        logits: Tensor,
        correction_bias: Tensor,
        *,
        top_k: int,
        n_group: int,
        topk_group: int,
        norm_topk_prob: bool,
        routed_scaling_factor: float,
    ) -> tuple[Tensor, Tensor]:
        """Choose experts: logits [T, E], bias [E] → indices int32 [T, k], weights [T, k]."""
        scores = logits.sigmoid()
        choice = scores + correction_bias
        grouped = choice.unflatten(-1, (n_group, -1))
        group_scores = grouped.topk(2, dim=-1).values.sum(-1)
        kept = torch.zeros_like(group_scores, dtype=torch.bool)
        kept.scatter_(-1, first_largest(group_scores, topk_group), True)
        choice = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(-2)
        indices = first_largest(choice, top_k)
        weights = scores.gather(-1, indices)
        if norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return indices.int(), weights * routed_scaling_factor

    def moe_experts(
        self, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        """Σ weight · down(silu(gate x) · up x) over each token's experts; reads only those hit.

        x [T, hidden], indices int32 [T, k], weights [T, k], gate_up [E, 2I, hidden] (gate rows
        first), down [E, hidden, I] → [T, hidden].
        """

        def of(expert: int) -> tuple[Product, Product]:
            both, last = gate_up[expert], down[expert]
            return lambda x: F.linear(x, both), lambda x: F.linear(x, last)

        return sum_experts(x, indices, weights, of)

    def fp8_linear(
        self, x: Tensor, weight: Tensor, scale: Tensor, *, quantize_activations: int
    ) -> Tensor:
        """W x with W = e4m3(weight) · scale: x [T, in], weight int8 [out, in], scale float32
        [⌈out/128⌉, ⌈in/128⌉] → [T, out].

        quantize_activations 1: x is rounded to e4m3 first, with a scale for each token and 128
        inputs, s = max(max |x|, 1e-10) / 448 (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
        """
        given = _rounded_to_e4m3(x) if quantize_activations else x
        return _fp8_product(given, weight, scale)

    def nvfp4_linear(
        self, x: Tensor, weight: Tensor, scale: Tensor, global_scale: Tensor
    ) -> Tensor:
        """W x with W = e2m1(weight) · e4m3(scale) · global_scale: x [T, in], weight int8
        [out, in/2], scale int8 [out, in/16], global_scale float32 [1] → [T, out].
        """
        return _nvfp4_product(x, weight, scale, global_scale)

    def fp8_moe_experts(
        self,
        x: Tensor,
        indices: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        gate_up_scale: Tensor,
        down: Tensor,
        down_scale: Tensor,
    ) -> Tensor:
        """`moe_experts` with FP8 weights: bytes int8 [E, 2I, hidden] and [E, hidden, I], scales
        [E, 2, ⌈I/128⌉, ⌈hidden/128⌉] and [E, ⌈hidden/128⌉, ⌈I/128⌉].
        """

        def of(expert: int) -> tuple[Product, Product]:
            codes, scales = gate_up[expert].chunk(2), gate_up_scale[expert]
            last, last_scale = down[expert], down_scale[expert]

            def both(x: Tensor) -> Tensor:
                halves = zip(codes, scales, strict=True)
                return torch.cat([_fp8_product(x, *half) for half in halves], dim=-1)

            return both, lambda x: _fp8_product(x, last, last_scale)

        return sum_experts(x, indices, weights, of)

    def nvfp4_moe_experts(
        self,
        x: Tensor,
        indices: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        gate_up_scale: Tensor,
        gate_up_global: Tensor,
        down: Tensor,
        down_scale: Tensor,
        down_global: Tensor,
    ) -> Tensor:
        """`moe_experts` with NVFP4 weights: bytes int8 [E, 2I, hidden/2] and [E, hidden, I/2],
        their scales int8 [E, 2I, hidden/16] and [E, hidden, I/16], global ones [E, 2] and [E].
        """

        def of(expert: int) -> tuple[Product, Product]:
            codes, scales = gate_up[expert].chunk(2), gate_up_scale[expert].chunk(2)
            global_scales = gate_up_global[expert]
            last = (down[expert], down_scale[expert], down_global[expert])

            def both(x: Tensor) -> Tensor:
                halves = zip(codes, scales, global_scales, strict=True)
                return torch.cat([_nvfp4_product(x, *half) for half in halves], dim=-1)

            return both, lambda x: _nvfp4_product(x, *last)

        return sum_experts(x, indices, weights, of)

    def indexer_scores(self, query: Tensor, keys: Tensor, weights: Tensor, scale: float) -> Tensor:
        """Σ_h w_h · relu(q_h·k · scale): query [B, S, H, D], keys [B, 1, C, D] → [B, S, C]."""
        dots = torch.matmul(at_least_float32(query), at_least_float32(keys).transpose(-1, -2))
        return torch.matmul(weights.unsqueeze(-2), F.relu(dots * scale)).squeeze(-2)

    def indexer_topk(
        self,
        query: Tensor,
        keys: Tensor,
        weights: Tensor,
        past_lengths: Tensor,
        *,
        index_topk: int,
        scale: float,
    ) -> Tensor:
        """Visible positions with the largest indexer scores, ascending, then −1: int32 [B, S, K].

        query [B, S, H, D], keys [B, 1, C, D], weights float32 [B, S, H], past_lengths [B];
        K = min(index_topk, C). A query at position p sees positions 0 … p.
        """
        capacity = keys.shape[2]
        columns = torch.arange(capacity, device=keys.device)

        def of(part: slice) -> Tensor:
            scores = self.indexer_scores(query[:, part], keys, weights[:, part], scale)
            positions = positions_of(past_lengths + part.start, scores.shape[1]).unsqueeze(-1)
            scores = scores.masked_fill(columns > positions, float("-inf"))
            chosen = first_largest(scores, min(index_topk, capacity))
            chosen = chosen.masked_fill(chosen > positions, capacity).sort(dim=-1).values
            return chosen.masked_fill(chosen == capacity, -1).int()

        return by_query_slices(query.shape, capacity, of)

    def sparse_mla(
        self, query: Tensor, cache: Tensor, indices: Tensor, *, scale: float, value_width: int
    ) -> Tensor:
        """Attend to the selected latents: softmax(q·c·scale) c[:R], −1 entries left out.

        query [B, S, H, R+rope], cache [B, 1, C, R+rope], indices int32 [B, S, K] → [B, S, H, R].
        """

        def of(part: slice) -> Tensor:
            dots = torch.matmul(query[:, part], cache.transpose(-1, -2)) * scale
            selected = selection_mask(indices[:, part], cache.shape[2])
            dots = at_least_float32(dots).masked_fill(~selected.unsqueeze(2), float("-inf"))
            probabilities = torch.softmax(dots, dim=-1).to(query.dtype)
            return torch.matmul(probabilities, cache[..., :value_width])

        return by_query_slices(query.shape, cache.shape[2], of)

    def causal_mla(
        self,
        query: Tensor,
        cache: Tensor,
        past_lengths: Tensor,
        *,
        scale: float,
        value_width: int,
    ) -> Tensor:
        """Attend to all latents up to a query's position: softmax(q·c·scale) c[:R].

        query [B, S, H, R+rope], cache [B, 1, C, R+rope], past_lengths [B] → [B, S, H, R].
        What stands behind the sequence in the cache may be NaN.
        """
        columns = torch.arange(cache.shape[2], device=cache.device)
        unwritten = columns >= (past_lengths + query.shape[1]).unsqueeze(-1)  # [B, C]
        values = cache[..., :value_width].masked_fill(unwritten[:, None, :, None], 0.0)

        def of(part: slice) -> Tensor:
            dots = torch.matmul(query[:, part], cache.transpose(-1, -2)) * scale
            positions = positions_of(past_lengths + part.start, dots.shape[1])
            hidden = columns > positions.unsqueeze(-1)  # [B, S, C]
            dots = at_least_float32(dots).masked_fill(hidden.unsqueeze(2), float("-inf"))
            probabilities = torch.softmax(dots, dim=-1).to(query.dtype)
            return torch.matmul(probabilities, values)

        return by_query_slices(query.shape, cache.shape[2], of)

    def causal_conv_with_state(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        past_state: Tensor,
        *,
        activation: str = "silu",
    ) -> tuple[Tensor, Tensor]:
        """Depthwise convolution over past and present, then SiLU ("silu" or "swish"; or "none").

        x [B, C, S], weight [C, 1, K], bias [C] or None, past_state [B, C, K−1] → y [B, C, S] and
        the last K−1 columns of [past_state ‖ x]. Sums are float32, the result is in x's dtype.
        """
        columns = torch.cat([past_state, x], dim=-1)
        wide = at_least_float32(columns)
        kernel, added = weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype)
        y = F.conv1d(wide, kernel, added, groups=weight.shape[0])
        y = y if activation == "none" else F.silu(y)
        return y.to(x.dtype), columns[:, :, x.shape[2] :]

    def linear_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        past_state: Tensor,
        decay: Tensor,
        beta: Tensor,
        *,
        q_num_heads: int,
        kv_num_heads: int,
        update_rule: str = "gated_delta",
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """ai.onnx 27 LinearAttention: output [B, S, Hq·d_v] and the present state.

        Parameters
        ----------
        query, key, value : [B, S, Hq·d_k], [B, S, H·d_k], [B, S, H·d_v].
        past_state : [B, H, d_k, d_v]; query heads in a row of Hq / H share one.
        decay : in log-space, [B, S, H] or per channel of the keys [B, S, H·d_k].
        beta : update rate [B, S, H].
        update_rule : "gated_delta", "delta", "gated" or "linear"; what it has no term for is
            not read.
        scale : of the queries; 0 means d_k^−½.
        """
        return linear_rules.linear_attention(
            query, key, value, past_state, decay, beta, q_num_heads=q_num_heads,
            kv_num_heads=kv_num_heads, update_rule=update_rule, scale=scale,
        )  # fmt: skip


def sum_experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    of: Callable[[int], tuple[Product, Product]],
) -> Tensor:
    """Σ weight · down(silu(gate x) · up x) over each token's experts, in x's dtype.

    x [T, hidden], indices, weights [T, k]. `of` gives an expert's products with gate and up,
    [n, hidden] → [n, 2I], and with down; only those hit are asked for, one at a time.
    """
    total = torch.zeros_like(x)
    for expert in indices.unique().tolist():
        token, slot = torch.where(indices == expert)
        gate_up, down = of(expert)
        gate, up = gate_up(x[token]).chunk(2, dim=-1)
        part = down(F.silu(gate) * up) * weights[token, slot].unsqueeze(-1)
        total.index_add_(0, token, part.to(total.dtype))
    return total


def _fp8_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    wide = scale.to(torch.promote_types(x.dtype, torch.float32))

    def of(rows: slice) -> Tensor:
        blocks = slice(rows.start // BLOCK, -(-rows.stop // BLOCK))
        return dequantize_fp8(codes[rows], wide[blocks]).to(x.dtype)

    return product_by_slices(x, codes.shape, of)


def _nvfp4_product(x: Tensor, codes: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    wide = global_scale.to(torch.promote_types(x.dtype, torch.float32))

    def of(rows: slice) -> Tensor:
        return dequantize_nvfp4(codes[rows], scale[rows], wide).to(x.dtype)

    return product_by_slices(x, codes.shape, of)


def product_by_slices(x: Tensor, shape: tuple[int, ...], of: Callable[[slice], Tensor]) -> Tensor:
    """x Wᵀ, of which `of` gives rows: few at a time, so that they stay in the processor's cache and
    memory is not asked from the system each time.
    """
    rows, columns = shape
    step = BLOCK * max(SLICE_NUMBERS // (BLOCK * columns), 1)
    y = x.new_empty(x.shape[0], rows)  # first, as small pieces between the slices part memory
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        y[:, part] = F.linear(x, of(part))
    return y


def by_query_slices(shape: tuple[int, ...], capacity: int, of: Callable[[slice], Tensor]) -> Tensor:
    """What `of` gives of all queries [B, S, H, ·], axis 1 being theirs: of as many at a time as
    have `SCORES_AT_ONCE` scores with `capacity` positions. Queries know nothing of each other.
    """
    batch, length, heads, _ = shape
    step = max(SCORES_AT_ONCE // max(batch * heads * capacity, 1), 1)
    if length <= step:
        return of(slice(0, length))
    parts = range(0, length, step)
    return torch.cat([of(slice(a, min(a + step, length))) for a in parts], dim=1)


def _rounded_to_e4m3(x: Tensor) -> Tensor:
    """x [T, in] as its e4m3 codes say, in x's dtype."""
    width = x.shape[1]
    groups = F.pad(at_least_float32(x), (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448
    rounded = (groups / scale).to(torch.float8_e4m3fn).to(groups.dtype) * scale
    return rounded.flatten(1)[:, :width].to(x.dtype)


def selection_mask(indices: Tensor, capacity: int) -> Tensor:
    """True where a position is selected: indices int32 [B, S, K] (−1 = none) → bool [B, S, C]."""
    mask = torch.zeros(*indices.shape[:-1], capacity + 1, dtype=torch.bool, device=indices.device)
    mask.scatter_(-1, torch.where(indices < 0, capacity, indices).long(), True)
    return mask[..., :capacity]
