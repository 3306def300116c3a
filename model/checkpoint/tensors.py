"""Every tensor of a checkpoint, from its config alone: name, shape, dtype and component."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from glm_trt.model.config import ModelConfig
from glm_trt.model.quantization import Quantization
from glm_trt.model.states import linear_channels

# What a tensor belongs to. "mtp" is what the prediction layers have besides a decoder layer's.
COMPONENTS = (
    "embedding", "head", "mla", "indexer", "linear_attention", "dense_mlp", "routed_experts",
    "shared_experts", "router", "norms", "mtp",
)  # fmt: skip

# Float32 in the released checkpoint, whatever the rest is in.
_FLOAT32 = "mlp.gate.e_score_correction_bias"

_Entry = tuple[str, str, tuple[int, ...]]  # component, name within the layer, shape


class TensorSpec(NamedTuple):
    """One tensor as a checkpoint stores it.

    Attributes
    ----------
    name : as in the safetensors files.
    shape : rows are outputs.
    dtype : "float32", or that of the checkpoint; of what is stored narrow "float8_e4m3fn", "uint8".
    component : one of `COMPONENTS`.
    layer : number of its decoder or prediction layer; None outside the layers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    component: str
    layer: int | None

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def checkpoint_tensors(
    config: ModelConfig,
    *,
    dtype: str | None = None,
    stacked: Collection[int] = (),
    with_mtp: bool = True,
    with_head: bool | None = None,
) -> Iterator[TensorSpec]:
    """All tensors, in the order of the model, one at a time.

    Parameters
    ----------
    dtype : of all that is not float32 anyway; None means the config's, or bfloat16.
    stacked : layers whose experts are stored as one tensor rather than one each.
    with_mtp : whether the prediction layers that the config announces are stored.
    with_head : whether `lm_head.weight` is; None means unless the embedding is tied to it.
    """
    common = dtype or config.dtype or "bfloat16"
    if with_head is None:
        with_head = not config.tie_word_embeddings

    def specs(prefix: str, layer: int | None, entries: Iterable[_Entry]) -> Iterator[TensorSpec]:
        for component, name, shape in entries:
            kind = "float32" if name.endswith(_FLOAT32) else common
            yield TensorSpec(prefix + name, shape, kind, component, layer)

    hidden, vocabulary = config.hidden_size, config.vocab_size
    yield from specs("", None, [("embedding", "model.embed_tokens.weight", (vocabulary, hidden))])
    for layer in range(config.num_hidden_layers):
        entries = _layer(config, layer, layer in stacked)
        yield from specs(f"model.layers.{layer}.", layer, entries)
    for layer in mtp_layers(config) if with_mtp else ():
        entries = _layer(config, layer, layer in stacked)
        yield from specs(f"model.layers.{layer}.", layer, entries)
        yield from specs(f"model.layers.{layer}.", layer, _prediction(hidden))
    yield from specs("", None, [("norms", "model.norm.weight", (hidden,))])
    if with_head:
        yield from specs("", None, [("head", "lm_head.weight", (vocabulary, hidden))])


def stored_tensors(specs: Iterable[TensorSpec], quantization: Quantization) -> Iterator[TensorSpec]:
    """`specs` as they are stored: codes and scales in place of each matrix that is narrow."""
    for spec in specs:
        module = spec.name.removesuffix(".weight")
        precision = quantization.precision_of(module)
        if precision == "bf16":
            yield spec
            continue
        for part in quantization.parts(spec.shape, precision):
            yield spec._replace(name=module + part.suffix, shape=part.shape, dtype=part.dtype)


def mtp_layers(config: ModelConfig) -> range:
    """Layer numbers of the multi-token-prediction layers, which follow the decoder's."""
    first = config.num_hidden_layers
    return range(first, first + config.num_nextn_predict_layers)


def _prediction(hidden: int) -> Iterator[_Entry]:
    for name in ("enorm", "hnorm", "shared_head.norm"):
        yield "mtp", f"{name}.weight", (hidden,)
    yield "mtp", "eh_proj.weight", (hidden, 2 * hidden)


def _layer(config: ModelConfig, layer: int, stacked: bool) -> Iterator[_Entry]:
    hidden, kind = config.hidden_size, config.attention_kind(layer)
    yield "norms", "input_layernorm.weight", (hidden,)
    yield "norms", "post_attention_layernorm.weight", (hidden,)
    if kind == "linear":
        yield from _linear(config)
    else:
        yield from _latent_attention(config)
    if kind == "indexed":
        yield from _indexer(config)
    if config.mlp_kind(layer) == "sparse":
        yield from _moe(config, stacked)
    else:
        yield from _mlp("dense_mlp", "mlp.", hidden, config.intermediate_size)


def _latent_attention(config: ModelConfig) -> Iterator[_Entry]:
    hidden, heads, q_rank = config.hidden_size, config.num_attention_heads, config.q_lora_rank
    rank, rope, nope = config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "q_a_proj.weight": (q_rank, hidden),
        "q_a_layernorm.weight": (q_rank,),
        "q_b_proj.weight": (heads * (nope + rope), q_rank),
        "kv_a_proj_with_mqa.weight": (rank + rope, hidden),
        "kv_a_layernorm.weight": (rank,),
        "kv_b_proj.weight": (heads * (nope + config.v_head_dim), rank),
        "o_proj.weight": (hidden, heads * config.v_head_dim),
    }
    if config.attention_bias:
        shapes |= {
            "q_a_proj.bias": (q_rank,),
            "kv_a_proj_with_mqa.bias": (rank + rope,),
            "o_proj.bias": (hidden,),
        }
    for name, shape in shapes.items():
        yield "mla", f"self_attn.{name}", shape


def _indexer(config: ModelConfig) -> Iterator[_Entry]:
    hidden, width, heads = config.hidden_size, config.index_head_dim, config.index_n_heads
    shapes: dict[str, tuple[int, ...]] = {
        "wq_b.weight": (heads * width, config.q_lora_rank),
        "wk.weight": (width, hidden),
        "k_norm.weight": (width,),
        "k_norm.bias": (width,),
        "weights_proj.weight": (heads, hidden),
    }
    for name, shape in shapes.items():
        yield "indexer", f"self_attn.indexer.{name}", shape


def _linear(config: ModelConfig) -> Iterator[_Entry]:
    hidden, heads = config.hidden_size, config.linear_num_value_heads
    values, channels = heads * config.linear_value_head_dim, linear_channels(config)
    shapes: dict[str, tuple[int, ...]] = {
        "in_proj_qkvz.weight": (channels + values, hidden),
        "in_proj_ba.weight": (2 * heads, hidden),
        "conv1d.weight": (channels, 1, config.linear_conv_kernel_dim),
        "A_log": (heads,),
        "dt_bias": (heads,),
        "norm.weight": (config.linear_value_head_dim,),
        "out_proj.weight": (hidden, values),
    }
    for name, shape in shapes.items():
        yield "linear_attention", f"linear_attn.{name}", shape


def _moe(config: ModelConfig, stacked: bool) -> Iterator[_Entry]:
    hidden, experts = config.hidden_size, config.n_routed_experts
    width = config.moe_intermediate_size
    yield "router", "mlp.gate.weight", (experts, hidden)
    yield "router", "mlp.gate.e_score_correction_bias", (experts,)
    if stacked:
        yield "routed_experts", "mlp.experts.gate_up_proj", (experts, 2 * width, hidden)
        yield "routed_experts", "mlp.experts.down_proj", (experts, hidden, width)
    else:
        for expert in range(experts):
            yield from _mlp("routed_experts", f"mlp.experts.{expert}.", hidden, width)
    shared = config.n_shared_experts * width
    yield from _mlp("shared_experts", "mlp.shared_experts.", hidden, shared)


def _mlp(component: str, prefix: str, hidden: int, width: int) -> Iterator[_Entry]:
    yield component, f"{prefix}gate_proj.weight", (width, hidden)
    yield component, f"{prefix}up_proj.weight", (width, hidden)
    yield component, f"{prefix}down_proj.weight", (hidden, width)
