"""Which tensors a checkpoint of a given config must hold, with their shapes."""

from __future__ import annotations

from collections.abc import Collection

from glm_trt.model.config import ModelConfig
from glm_trt.model.states import linear_channels

Shapes = dict[str, tuple[int, ...]]

# Kept in float32 by transformers where the rest is narrower, unless the user casts them.
FLOAT32_ALLOWED = (
    "mlp.gate.e_score_correction_bias",
    "indexer.weights_proj.weight",
    "linear_attn.A_log",
    "linear_attn.dt_bias",
)


def expected_tensors(config: ModelConfig, stacked: Collection[int], with_mtp: bool) -> Shapes:
    """Names and shapes; `stacked` names the layers whose experts are stored as one tensor."""
    hidden, vocabulary = config.hidden_size, config.vocab_size
    table: Shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(config.num_hidden_layers):
        sparse = config.mlp_layer_types[layer] == "sparse"
        kind = config.attention_kinds[layer]
        _add(table, layer, _layer(config, sparse, kind, layer in stacked))
    # The prediction layer attends as the decoder does where that is not linear.
    mtp_kind = "indexed" if "indexed_attention" in config.layer_types else "full"
    for layer in mtp_layers(config) if with_mtp else ():
        _add(table, layer, _layer(config, True, mtp_kind, layer in stacked))
        extra: Shapes = {name: (hidden,) for name in ("enorm.weight", "hnorm.weight")}
        extra |= {"eh_proj.weight": (hidden, 2 * hidden), "shared_head.norm.weight": (hidden,)}
        _add(table, layer, extra)
    return table


def mtp_layers(config: ModelConfig) -> range:
    """Layer numbers of the multi-token-prediction layers, which follow the decoder's."""
    first = config.num_hidden_layers
    return range(first, first + config.num_nextn_predict_layers)


def _add(table: Shapes, layer: int, shapes: Shapes) -> None:
    table.update({f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()})


def _layer(config: ModelConfig, sparse: bool, kind: str, stacked: bool) -> Shapes:
    hidden = config.hidden_size
    table: Shapes = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if kind == "linear":
        table |= {f"linear_attn.{name}": shape for name, shape in _linear(config).items()}
    else:
        table |= {f"self_attn.{name}": shape for name, shape in _attention(config).items()}
    if kind == "indexed":
        width, heads = config.index_head_dim, config.index_n_heads
        table |= {
            "self_attn.indexer.wq_b.weight": (heads * width, config.q_lora_rank),
            "self_attn.indexer.wk.weight": (width, hidden),
            "self_attn.indexer.k_norm.weight": (width,),
            "self_attn.indexer.k_norm.bias": (width,),
            "self_attn.indexer.weights_proj.weight": (heads, hidden),
        }
    if not sparse:
        return table | _mlp("mlp.", hidden, config.intermediate_size)
    experts, width = config.n_routed_experts, config.moe_intermediate_size
    table |= {
        "mlp.gate.weight": (experts, hidden),
        "mlp.gate.e_score_correction_bias": (experts,),
    }
    if stacked:
        table |= {
            "mlp.experts.gate_up_proj": (experts, 2 * width, hidden),
            "mlp.experts.down_proj": (experts, hidden, width),
        }
    else:
        for expert in range(experts):
            table |= _mlp(f"mlp.experts.{expert}.", hidden, width)
    return table | _mlp("mlp.shared_experts.", hidden, config.n_shared_experts * width)


def _attention(config: ModelConfig) -> Shapes:
    hidden, heads, q_rank = config.hidden_size, config.num_attention_heads, config.q_lora_rank
    rank, rope, nope = config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim
    table: Shapes = {
        "q_a_proj.weight": (q_rank, hidden),
        "q_a_layernorm.weight": (q_rank,),
        "q_b_proj.weight": (heads * (nope + rope), q_rank),
        "kv_a_proj_with_mqa.weight": (rank + rope, hidden),
        "kv_a_layernorm.weight": (rank,),
        "kv_b_proj.weight": (heads * (nope + config.v_head_dim), rank),
        "o_proj.weight": (hidden, heads * config.v_head_dim),
    }
    if config.attention_bias:
        table |= {
            "q_a_proj.bias": (q_rank,),
            "kv_a_proj_with_mqa.bias": (rank + rope,),
            "o_proj.bias": (hidden,),
        }
    return table


def _linear(config: ModelConfig) -> Shapes:
    hidden, heads = config.hidden_size, config.linear_num_value_heads
    values, channels = heads * config.linear_value_head_dim, linear_channels(config)
    return {
        "in_proj_qkvz.weight": (channels + values, hidden),
        "in_proj_ba.weight": (2 * heads, hidden),
        "conv1d.weight": (channels, 1, config.linear_conv_kernel_dim),
        "A_log": (heads,),
        "dt_bias": (heads,),
        "norm.weight": (config.linear_value_head_dim,),
        "out_proj.weight": (hidden, values),
    }


def _mlp(prefix: str, hidden: int, width: int) -> Shapes:
    return {
        f"{prefix}gate_proj.weight": (width, hidden),
        f"{prefix}up_proj.weight": (width, hidden),
        f"{prefix}down_proj.weight": (hidden, width),
    }
