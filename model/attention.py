"""Multi-head latent attention (MLA): over what a sparse indexer selects (DeepSeek-V3.2's DSA, as
in GLM-5), or over the whole context.

Follows transformers' `GlmMoeDsaAttention` and `GlmMoeDsaIndexer`. The latent cache holds, per
token, the normalised latent and the rotated shared key: [c (R) ‖ k_rope]. It never holds
expanded keys and values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_trt.model.config import ModelConfig
from glm_trt.model.linear import Linears
from glm_trt.model.operators import (
    EagerOperators,
    at_least_float32,
    by_query_slices,
    positions_of,
    selection_mask,
)
from glm_trt.model.states import State

# transformers leaves these two norms and the indexer's at their class default, whatever
# `rms_norm_eps` says.
LATENT_NORM_EPS = 1e-6
INDEXER_NORM_EPS = 1e-6


class Step(NamedTuple):
    """What the attention of one pass shares: cos, sin [B, S, rope/2]; past_lengths int64 [B]."""

    cos: Tensor
    sin: Tensor
    past_lengths: Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, width: int, eps: float, operators: EagerOperators) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.operators = operators

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., width]."""
        return self.operators.rms_norm(x, self.weight, self.eps)


class Indexer(nn.Module):
    """Scores every cached position for every new token and keeps the best `index_topk`."""

    def __init__(self, config: ModelConfig, linears: Linears) -> None:
        super().__init__()
        self.heads, self.width = config.index_n_heads, config.index_head_dim
        self.index_topk = config.index_topk
        self.scale = self.width**-0.5
        self.operators = linears.operators
        self.wq_b = linears("wq_b", config.q_lora_rank, self.heads * self.width)
        self.wk = linears("wk", config.hidden_size, self.width)
        self.k_norm = nn.LayerNorm(self.width, eps=INDEXER_NORM_EPS)
        self.weights_proj = linears("weights_proj", config.hidden_size, self.heads)

    def project(
        self, x: Tensor, q_latent: Tensor, index_keys: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, S, H, D], head weights [B, S, H] and the updated keys [B, 1, C, D].

        x [T, hidden], q_latent [T, q_lora_rank].
        """
        batch, length, _ = step.cos.shape
        query = self.wq_b(q_latent).reshape(batch, length, -1)
        query = self.operators.rotary_embedding(query, step.cos, step.sin, self.heads)
        key = self.k_norm(self.wk(x)).reshape(batch, length, self.width)
        key = self.operators.rotary_embedding(key, step.cos, step.sin, 1)
        keys = self.operators.update_cache(index_keys, key.unsqueeze(1), step.past_lengths)
        weights = at_least_float32(self.weights_proj(x)) * self.heads**-0.5
        return (
            query.reshape(batch, length, self.heads, self.width),
            weights.reshape(batch, length, self.heads),
            keys,
        )

    def forward(
        self, x: Tensor, q_latent: Tensor, index_keys: Tensor, step: Step
    ) -> tuple[Tensor, Tensor]:
        """Selected positions int32 [B, S, K] and the updated keys [B, 1, C, D]."""
        query, weights, keys = self.project(x, q_latent, index_keys, step)
        indices = self.operators.indexer_topk(
            query, keys, weights, step.past_lengths, index_topk=self.index_topk, scale=self.scale
        )
        return indices, keys


class Attention(nn.Module):
    """Latent attention: of kind "indexed" over the positions that its own indexer selects, "shared"
    over those that an earlier layer's did, "full" over all up to the query's.

    `absorbed` folds the key up-projection into the query and attends in the latent space, which
    is what is exported; the expanded form rebuilds keys and values as transformers does. Both
    compute the same function.
    """

    def __init__(self, config: ModelConfig, kind: str, absorbed: bool, linears: Linears) -> None:
        super().__init__()
        operators = linears.operators
        self.kind = kind
        self.heads = config.num_attention_heads
        self.nope, self.rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value, self.rank = config.v_head_dim, config.kv_lora_rank
        self.scale = (self.nope + self.rope) ** -0.5
        self.absorbed, self.operators = absorbed, operators
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_a_proj = linears("q_a_proj", hidden, config.q_lora_rank, bias)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS, operators)
        width = self.heads * (self.nope + self.rope)
        self.q_b_proj = linears("q_b_proj", config.q_lora_rank, width)
        self.kv_a_proj_with_mqa = linears("kv_a_proj_with_mqa", hidden, self.rank + self.rope, bias)
        self.kv_a_layernorm = RMSNorm(self.rank, LATENT_NORM_EPS, operators)
        # kv_b_proj of the checkpoint, split per head into its key and its value rows; dequantised
        # when loaded, as heads are no multiples of the blocks that share a scale.
        self.k_up_proj = nn.Parameter(torch.empty(self.heads, self.nope, self.rank))
        self.v_up_proj = nn.Parameter(torch.empty(self.heads, self.value, self.rank))
        self.o_proj = linears("o_proj", self.heads * self.value, hidden, bias)
        self.indexer = Indexer(config, linears.within("indexer")) if kind == "indexed" else None

    def query_latent(self, x: Tensor) -> Tensor:
        """The shared low-rank query [T, q_lora_rank] of x [T, hidden]."""
        latent: Tensor = self.q_a_layernorm(self.q_a_proj(x))
        return latent

    def forward(
        self, x: Tensor, state: State, step: Step, shared_indices: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        """x [T, hidden] → output [T, hidden], the new state, and what the indexer, if there is
        one, selected: int32 [B, S, K].

        Parameters
        ----------
        state : kv_cache [B, 1, C, R+rope]; with an indexer index_keys [B, 1, C, D_index].
        shared_indices : int32 [B, S, K], what a shared layer attends to; others ignore it.
        """
        batch, length, _ = step.cos.shape
        q_latent = self.query_latent(x)
        q_nope, q_rope = (
            self.q_b_proj(q_latent)
            .reshape(-1, self.heads, self.nope + self.rope)
            .split([self.nope, self.rope], dim=-1)
        )
        q_rope = self._rotate(q_rope.reshape(batch, length, -1), step, self.heads)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.rank, self.rope], dim=-1)
        latent = self.kv_a_layernorm(latent).reshape(batch, length, self.rank)
        k_rope = self._rotate(k_rope.reshape(batch, length, self.rope), step, 1)
        entry = torch.cat([latent, k_rope], dim=-1).unsqueeze(1)
        cache = self.operators.update_cache(state["kv_cache"], entry, step.past_lengths)

        new_state, selected = {"kv_cache": cache}, None
        if self.indexer is not None:
            selected, keys = self.indexer(x, q_latent, state["index_keys"], step)
            new_state["index_keys"] = keys
        indices = shared_indices if self.kind == "shared" else selected
        q_rope = q_rope.reshape(batch, length, self.heads, self.rope)
        attend = self._attend_absorbed if self.absorbed else self._attend_expanded
        output = attend(q_nope, q_rope, cache, step.past_lengths, indices)
        return self.o_proj(output), new_state, selected

    def _rotate(self, x: Tensor, step: Step, heads: int) -> Tensor:
        return self.operators.rotary_embedding(x, step.cos, step.sin, heads)

    def _attend_absorbed(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        cache: Tensor,
        past_lengths: Tensor,
        indices: Tensor | None,
    ) -> Tensor:
        batch, length, _, _ = q_rope.shape
        # The weight is the left operand: as the right one, TensorRT transposes it on every step.
        absorbed = torch.matmul(self.k_up_proj.transpose(1, 2), q_nope.permute(1, 2, 0))
        absorbed = absorbed.permute(2, 0, 1)  # [T, H, R]
        query = torch.cat([absorbed.reshape(batch, length, self.heads, self.rank), q_rope], dim=-1)
        sizes = {"scale": self.scale, "value_width": self.rank}
        if indices is None:
            latent = self.operators.causal_mla(query, cache, past_lengths, **sizes)
        else:
            latent = self.operators.sparse_mla(query, cache, indices, **sizes)
        latent = latent.reshape(-1, self.heads, self.rank)
        values = torch.matmul(latent.transpose(0, 1), self.v_up_proj.transpose(1, 2))  # [H, T, V]
        return values.transpose(0, 1).reshape(-1, self.heads * self.value)

    def _attend_expanded(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        cache: Tensor,
        past_lengths: Tensor,
        indices: Tensor | None,
    ) -> Tensor:
        batch, length, _, _ = q_rope.shape
        latent, k_rope = cache.split([self.rank, self.rope], dim=-1)  # [B, 1, C, ·]
        key_nope = F.linear(latent, self.k_up_proj.flatten(0, 1)).unflatten(-1, (self.heads, -1))
        values = F.linear(latent, self.v_up_proj.flatten(0, 1)).unflatten(-1, (self.heads, -1))
        key_rope = k_rope.unsqueeze(3).expand(-1, -1, -1, self.heads, -1)
        keys = torch.cat([key_nope, key_rope], dim=-1)
        query = torch.cat([q_nope.reshape(batch, length, self.heads, self.nope), q_rope], dim=-1)
        keys, values = keys.squeeze(1).transpose(1, 2), values.squeeze(1).transpose(1, 2)
        columns = torch.arange(cache.shape[2], device=cache.device)

        def of(part: slice) -> Tensor:
            dots = torch.matmul(query[:, part].transpose(1, 2), keys.transpose(-1, -2)) * self.scale
            if indices is None:
                positions = positions_of(past_lengths + part.start, dots.shape[2])
                visible = columns <= positions.unsqueeze(-1)
            else:
                visible = selection_mask(indices[:, part], cache.shape[2])  # [B, S, C]
            dots = dots.masked_fill(~visible.unsqueeze(1), float("-inf"))
            weights = torch.softmax(at_least_float32(dots), dim=-1).to(values.dtype)
            return torch.matmul(weights, values).transpose(1, 2)  # [B, S, H, V]

        output = by_query_slices(query.shape, cache.shape[2], of)
        return output.reshape(batch * length, -1)
