"""The eager `glm_moe_dsa` model as a chain of blocks: embedding, decoder layers, head.

No module keeps state: a pass takes the states of all layers and returns new ones. What the
exporter traces is exactly one of these blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glm_trt.model.attention import Attention, RMSNorm, Step
from glm_trt.model.config import ModelConfig
from glm_trt.model.linear import Linears
from glm_trt.model.linear_attention import GatedDeltaNet
from glm_trt.model.mlp import DenseMLP, MoE
from glm_trt.model.operators import EagerOperators, at_least_float32, positions_of
from glm_trt.model.states import State, StateSpec, layer_states

# Inputs of a layer that are no states.
ACTIVATIONS = {"hidden", "embedded", "lengths", "shared_indices", *Step._fields}


class LayerOutput(NamedTuple):
    """hidden [B, S, hidden]; the new state; topk_indices int32 [B, S, K], None unless the layer
    has an indexer; expert_indices int32 [T, k], None in a dense layer.
    """

    hidden: Tensor
    state: State
    topk_indices: Tensor | None
    expert_indices: Tensor | None


class Embedding(nn.Module):
    """Token embedding, and the rotary angles that every layer of the pass uses."""

    inverse_frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # With a weight of its own none is drawn, which for a meta tensor loads torch._dynamo.
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
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
    """Attention of the layer's kind and MLP, each behind a norm and added to the residual."""

    def __init__(
        self, config: ModelConfig, layer: int, absorbed: bool, operators: EagerOperators
    ) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        kind = config.attention_kind(layer)
        linears = Linears(config.quantization, f"model.layers.{layer}.", operators)
        self.is_linear = kind == "linear"
        if self.is_linear:
            self.linear_attn = GatedDeltaNet(config, linears.within("linear_attn"))
        else:
            self.self_attn = Attention(config, kind, absorbed, linears.within("self_attn"))
        self.mlp: DenseMLP | MoE
        if config.mlp_kind(layer) == "sparse":
            self.mlp = MoE(config, layer, linears.within("mlp"))
        else:
            self.mlp = DenseMLP(hidden, config.intermediate_size, linears.within("mlp"))
        self.input_layernorm = RMSNorm(hidden, eps, operators)
        self.post_attention_layernorm = RMSNorm(hidden, eps, operators)

    def forward(
        self,
        hidden: Tensor,
        state: State,
        step: Step | None,
        lengths: Tensor | None = None,
        shared_indices: Tensor | None = None,
    ) -> LayerOutput:
        """hidden [B, S, hidden] → `LayerOutput`.

        Parameters
        ----------
        state : the layer's states by name, as `layer_states` lists them.
        step : what attention reads; linear attention reads none of it.
        lengths : int64 [B], the real tokens of each row, for linear attention.
        shared_indices : int32 [B, S, K], for a layer of kind "shared".
        """
        x = hidden.reshape(-1, hidden.shape[-1])
        normed, topk_indices = self.input_layernorm(x), None
        if self.is_linear:
            mixed, state = self.linear_attn(normed, state, lengths, hidden.shape[1])
        else:
            mixed, state, topk_indices = self.self_attn(normed, state, step, shared_indices)
        x = x + mixed
        normed = self.post_attention_layernorm(x)
        expert_indices = None
        if isinstance(self.mlp, MoE):
            fed, expert_indices = self.mlp(normed)
        else:
            fed = self.mlp(normed)
        return LayerOutput((x + fed).reshape(hidden.shape), state, topk_indices, expert_indices)


class PredictionLayer(DecoderLayer):
    """The multi-token-prediction (MTP) layer: from what the decoder made of a token, and the token
    that follows it, towards the token after that (DeepSeek-V3, arXiv 2412.19437, section 2.2).

    h' = eh_proj [enorm(e) ‖ hnorm(norm(h))], and on through a decoder layer. The head follows it,
    with `shared_head.norm` in place of the decoder's last norm. That h is taken behind that last
    norm, and the embedding comes first, is not in the config: on text that the test checkpoint was
    trained for, its layer's cross entropy is 3.286 so, 3.295 without the norm, 7.5 in the other
    order; the decoder's own is 3.037, for the next token.
    """

    def __init__(
        self, config: ModelConfig, layer: int, absorbed: bool, operators: EagerOperators
    ) -> None:
        super().__init__(config, layer, absorbed, operators)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.norm = RMSNorm(hidden, eps, operators)  # the decoder's
        self.enorm = RMSNorm(hidden, eps, operators)
        self.hnorm = RMSNorm(hidden, eps, operators)
        linears = Linears(config.quantization, f"model.layers.{layer}.", operators)
        self.eh_proj = linears("eh_proj", 2 * hidden, hidden)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, embedded: Tensor, state: State, step: Step
    ) -> LayerOutput:
        """hidden [B, S, hidden] of the last decoder layer, embedded [B, S, hidden] of the tokens
        that follow → `LayerOutput`, whose hidden the head takes. `step` is that of the decoder.
        """
        shape = hidden.shape
        hidden, embedded = (x.reshape(-1, shape[-1]) for x in (hidden, embedded))
        joined = torch.cat([self.enorm(embedded), self.hnorm(self.norm(hidden))], dim=-1)
        return super().forward(self.eh_proj(joined).reshape(shape), state, step)


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
    block : an `Embedding`, a `DecoderLayer`, a `PredictionLayer` or a `Head`.
    inputs : `input_ids` and `past_lengths`; or `hidden`, the layer's states by name and what its
        attention reads (`cos`, `sin`, `past_lengths` and `shared_indices`, or `lengths`), of a
        prediction layer `embedded` too; or `hidden`.
    call : what is called with the block's own arguments, the block itself if None.
    """
    call = call or block
    if isinstance(block, Embedding):
        hidden, cos, sin = call(inputs["input_ids"], inputs["past_lengths"])
        return {"hidden_out": hidden, "cos": cos, "sin": sin}
    if isinstance(block, Head):
        return {"logits": call(inputs["hidden"])}
    state = {name: tensor for name, tensor in inputs.items() if name not in ACTIVATIONS}
    step = Step(*(inputs[name] for name in Step._fields)) if "cos" in inputs else None
    if isinstance(block, PredictionLayer):
        out: LayerOutput = call(inputs["hidden"], inputs["embedded"], state, step)
    else:
        shared = inputs.get("shared_indices")
        out = call(inputs["hidden"], state, step, inputs.get("lengths"), shared)
    result = {"hidden_out": out.hidden}
    result |= {f"{name}_out": tensor for name, tensor in out.state.items()}
    if out.topk_indices is not None:
        result["topk_indices"] = out.topk_indices
    if out.expert_indices is not None:
        result["expert_indices"] = out.expert_indices
    return result


class GlmMoeDsa(nn.Module):
    """All blocks. Load weights with `glm_trt.model.checkpoint.weights.load_model`."""

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

    def empty_states(self, batch: int, capacity: int) -> list[State]:
        """States with room for `capacity` positions of every layer, in the model's dtype and
        device.
        """
        weight = self.head.norm.weight

        def empty(spec: StateSpec) -> Tensor:
            zeros = weight.new_zeros(spec.shape(batch, capacity))
            return at_least_float32(zeros) if spec.dtype else zeros

        return [
            {spec.name: empty(spec) for spec in layer_states(self.config, layer)}
            for layer in range(self.config.num_hidden_layers)
        ]

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        states: list[State],
        past_lengths: Tensor,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, list[State]]:
        """One pass: input_ids int64 [B, S] → logits [B, S, vocab] and the new states.

        Parameters
        ----------
        past_lengths : int64 [B], how many tokens of each row the states hold.
        lengths : int64 [B], how many of a row's S tokens are real, all if None. The others stand
            behind them; their logits mean nothing and the states are as if they were not there.
        """
        hidden, cos, sin = self.embedding(input_ids, past_lengths)
        step = Step(cos, sin, past_lengths)
        if lengths is None:
            lengths = torch.full_like(past_lengths, input_ids.shape[1])
        new_states, indices = [], None
        for layer, state in zip(self.layers, states, strict=True):
            out: LayerOutput = layer(hidden, state, step, lengths, indices)
            hidden = out.hidden
            indices = indices if out.topk_indices is None else out.topk_indices
            new_states.append(out.state)
        return self.head(hidden), new_states
