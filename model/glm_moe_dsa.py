"""The eager `glm_moe_dsa` model as a chain of blocks: embedding, decoder layers, head.

No module keeps state: a pass takes the states of all layers and returns new ones. What the
exporter traces is exactly one of these blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glm_trt.model.attention import Attention, LayerState, RMSNorm, Step
from glm_trt.model.config import ModelConfig
from glm_trt.model.mlp import DenseMLP, MoE
from glm_trt.model.operators import EagerOperators, positions_of


class LayerOutput(NamedTuple):
    """hidden [B, S, hidden]; the new state; topk_indices int32 [B, S, K]; expert_indices
    int32 [T, k], None in a dense layer.
    """

    hidden: Tensor
    state: LayerState
    topk_indices: Tensor
    expert_indices: Tensor | None


class Embedding(nn.Module):
    """Token embedding, and the rotary angles that every layer of the pass uses."""

    inverse_frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        # Not a weight of the checkpoint, so it is made on the CPU even when the module is meta.
        width = config.qk_rope_head_dim
        exponent = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
        self.register_buffer(
            "inverse_frequencies", 1.0 / config.rope_theta**exponent, persistent=False
        )

    def forward(self, input_ids: Tensor, past_lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids int64 [B, S], past_lengths int64 [B] → hidden [B, S, hidden], cos and sin
        [B, S, rope/2] in the model's dtype. Angles are float32, as in transformers.
        """
        hidden = self.embed_tokens(input_ids)
        positions = positions_of(past_lengths, input_ids.shape[1])
        angles = positions.float().unsqueeze(-1) * self.inverse_frequencies.float()
        return hidden, angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self, config: ModelConfig, layer: int, absorbed: bool, operators: EagerOperators
    ) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        has_indexer = config.indexer_types[layer] == "full"
        self.self_attn = Attention(config, has_indexer, absorbed, operators)
        self.mlp: DenseMLP | MoE
        if config.mlp_layer_types[layer] == "sparse":
            self.mlp = MoE(config, operators)
        else:
            self.mlp = DenseMLP(hidden, config.intermediate_size)
        self.input_layernorm = RMSNorm(hidden, eps, operators)
        self.post_attention_layernorm = RMSNorm(hidden, eps, operators)

    def forward(
        self, hidden: Tensor, state: LayerState, step: Step, shared_indices: Tensor | None = None
    ) -> LayerOutput:
        """hidden [B, S, hidden] → `LayerOutput`; `shared_indices` only in a shared layer."""
        x = hidden.reshape(-1, hidden.shape[-1])
        attended, state, topk_indices = self.self_attn(
            self.input_layernorm(x), state, step, shared_indices
        )
        x = x + attended
        normed = self.post_attention_layernorm(x)
        expert_indices = None
        if isinstance(self.mlp, MoE):
            fed, expert_indices = self.mlp(normed)
        else:
            fed = self.mlp(normed)
        return LayerOutput((x + fed).reshape(hidden.shape), state, topk_indices, expert_indices)


class Head(nn.Module):
    """Final norm and the projection to the vocabulary."""

    def __init__(self, config: ModelConfig, operators: EagerOperators) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, operators)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [B, S, hidden] → logits [B, S, vocab] in the model's dtype."""
        x = self.norm(hidden.reshape(-1, hidden.shape[-1]))
        return self.lm_head(x).reshape(*hidden.shape[:-1], -1)


def run_block(
    block: nn.Module, inputs: dict[str, Tensor], call: Callable[..., Any] | None = None
) -> dict[str, Tensor]:
    """A block on named inputs, its outputs by name: the interface that graphs and engines have.

    Parameters
    ----------
    block : an `Embedding`, a `DecoderLayer` or a `Head`.
    inputs : `input_ids` and `past_lengths`; or `hidden`, `cos`, `sin`, `past_lengths`, `kv_cache`
        and `index_keys` or `shared_indices`; or `hidden`.
    call : what is called with the block's own arguments, the block itself if None.
    """
    call = call or block
    if isinstance(block, Embedding):
        hidden, cos, sin = call(inputs["input_ids"], inputs["past_lengths"])
        return {"hidden_out": hidden, "cos": cos, "sin": sin}
    if isinstance(block, Head):
        return {"logits": call(inputs["hidden"])}
    state = LayerState(inputs["kv_cache"], inputs.get("index_keys"))
    step = Step(inputs["cos"], inputs["sin"], inputs["past_lengths"])
    out: LayerOutput = call(inputs["hidden"], state, step, inputs.get("shared_indices"))
    result = {"hidden_out": out.hidden, "kv_cache_out": out.state.kv_cache}
    if out.state.index_keys is not None:
        result |= {"index_keys_out": out.state.index_keys, "topk_indices": out.topk_indices}
    if out.expert_indices is not None:
        result["expert_indices"] = out.expert_indices
    return result


class GlmMoeDsa(nn.Module):
    """All blocks. Load weights with `glm_trt.model.weights.load_model`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        absorbed: bool = False,
        operators: EagerOperators | None = None,
    ) -> None:
        super().__init__()
        operators = operators or EagerOperators()
        self.config = config
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, absorbed, operators) for i in range(config.num_hidden_layers)
        )
        self.head = Head(config, operators)

    def empty_states(self, batch: int, capacity: int) -> list[LayerState]:
        """States of `capacity` positions for every layer, in the model's dtype and device."""
        weight = self.embedding.embed_tokens.weight
        config = self.config

        def cache(width: int) -> Tensor:
            return weight.new_zeros(batch, 1, capacity, width)

        return [
            LayerState(
                cache(config.kv_lora_rank + config.qk_rope_head_dim),
                cache(config.index_head_dim) if kind == "full" else None,
            )
            for kind in config.indexer_types
        ]

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, states: list[LayerState], past_lengths: Tensor
    ) -> tuple[Tensor, list[LayerState]]:
        """One pass: input_ids int64 [B, S] → logits [B, S, vocab] and the new states."""
        hidden, cos, sin = self.embedding(input_ids, past_lengths)
        step = Step(cos, sin, past_lengths)
        new_states, indices = [], None
        for layer, state in zip(self.layers, states, strict=True):
            hidden, state, indices, _ = layer(hidden, state, step, indices)
            new_states.append(state)
        return self.head(hidden), new_states
