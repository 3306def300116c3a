"""Configs by name, in three sizes: GLM-5.1, the hybrid of its model card, and GLM-5.2."""

from __future__ import annotations

from typing import Any

from glm_trt.model.config import ModelConfig, block_kind
from glm_trt.model.errors import ConfigError

SCALES = ("tiny", "block", "full")

# The config of zai-org/GLM-5.1.
_GLM_5_1: dict[str, Any] = {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "dtype": "bfloat16",
    "vocab_size": 154880,
    "hidden_size": 6144,
    "num_hidden_layers": 78,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": [154820, 154827, 154829],
    "pad_token_id": 154820,
    # attention
    "attention_bias": False,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 2048,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "head_dim": 64,
    "v_head_dim": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    # MLPs
    "intermediate_size": 12288,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
_INDEXER = {"index_topk": 2048, "index_n_heads": 32, "index_head_dim": 128}

# From the model card: Gated DeltaNet and standard attention layers, three of the former to one of
# the latter, 78 layers, hidden 6,144, 64 heads, RoPE θ 1,000,000, 256 + 1 experts with 8 + 1
# active, 3 dense layers first, vocabulary 154,880, one prediction layer. It gives no sizes of
# linear attention and no places of the layers; assumed are: every fourth layer attends fully, with
# the checkpoint's MLA; 64 value heads (the card's) on 16 key heads, 128 wide, and a convolution
# over 4 tokens, in the proportions of Qwen3-Next, from which the layer comes.
_LINEAR = {
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 64,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
_HYBRID_LAYERS = [
    "full_attention" if layer % 4 == 3 else "linear_attention"
    for layer in range(_GLM_5_1["num_hidden_layers"])
]

# zai-org/GLM-5.2: the same geometry. Layers 0, 1, 2 and every fourth from 6 have an indexer, the 57
# others share its selection. `head_dim` is published so; it is derived (the rotary width).
_OWN_INDEXERS = {0, 1, *range(2, _GLM_5_1["num_hidden_layers"], 4)}
_GLM_5_2: dict[str, Any] = {
    "head_dim": 192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 8000000.0},
    "max_position_embeddings": 1048576,
    "moe_router_dtype": "float32",
    "index_share_for_mtp_iteration": True,
    "index_topk_freq": 4,
    "index_skip_topk_offset": 3,
    "indexer_types": [
        "full" if layer in _OWN_INDEXERS else "shared"
        for layer in range(_GLM_5_1["num_hidden_layers"])
    ],
}

PRESETS: dict[str, dict[str, Any]] = {
    "glm-5.1": _GLM_5_1 | _INDEXER,
    "glm-5.2": _GLM_5_1 | _INDEXER | _GLM_5_2,
    "glm-5.1-hybrid": _GLM_5_1 | _LINEAR | {"layer_types": _HYBRID_LAYERS},
}

_TINY: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32,
    "max_position_embeddings": 1024, "eos_token_id": [0], "pad_token_id": 0,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32,
    "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "head_dim": 8, "v_head_dim": 32,
    "n_routed_experts": 16, "num_experts_per_tok": 4,
    "index_topk": 64, "index_n_heads": 16, "index_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 8, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}  # fmt: skip


# As the releases have it; the list of FP8's names `indexers_proj`, which no tensor is called.
_QUANTIZATION: dict[str, dict[str, Any]] = {
    "fp8": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
}  # fmt: skip


def preset_config(
    name: str,
    scale: str,
    precision: str = "bf16",
    layers: int | None = None,
    kind: str | None = None,
    with_mtp: bool = True,
) -> dict[str, Any]:
    """The `config.json` of a preset at a scale.

    Parameters
    ----------
    name : one of `PRESETS`.
    scale : "full"; "block", one layer of each of its kinds at the real sizes; "tiny", the same
        layers at small sizes.
    precision : "bf16", or "fp8" or "nvfp4" for a config of such weights.
    layers : only so many, from the first.
    kind : only layers of that kind, such as "sparse_indexed".
    with_mtp : with the prediction layers.

    Raises
    ------
    ConfigError
        If it has not so many layers, or none of the kind.
    """
    data = _layers_of(_scaled(name, scale), name, layers, kind)
    if not with_mtp:
        data["num_nextn_predict_layers"] = 0
    if precision != "bf16":
        excluded = ["lm_head", "model.embed_tokens"]
        last = data["num_hidden_layers"] + data["num_nextn_predict_layers"]
        if precision == "fp8":
            excluded += [f"model.layers.{i}.self_attn.indexers_proj" for i in range(last)]
        else:
            excluded += [f"model.layers.{i}.mlp.gate" for i in range(last)]
        of = "modules_to_not_convert" if precision == "fp8" else "ignore"
        data["quantization_config"] = _QUANTIZATION[precision] | {of: excluded}
    return data


def _layers_of(
    data: dict[str, Any], name: str, layers: int | None, kind: str | None
) -> dict[str, Any]:
    if layers is None and kind is None:
        return data
    config = ModelConfig.from_dict(data, name)
    chosen = [
        i for i in range(config.num_hidden_layers) if kind is None or block_kind(config, i) == kind
    ]
    if not chosen:
        kinds = dict.fromkeys(block_kind(config, i) for i in range(config.num_hidden_layers))
        raise ConfigError(f"{name}: kind: expected one of {', '.join(kinds)}; found {kind}")
    wanted = len(chosen) if layers is None else layers
    if not 1 <= wanted <= len(chosen):
        of = f" of kind {kind}" if kind else ""
        raise ConfigError(f"{name}: expected 1 … {len(chosen)} layers{of}, found {wanted}")
    return _with_layers(data, config, chosen[:wanted])


def _with_layers(data: dict[str, Any], config: ModelConfig, layers: list[int]) -> dict[str, Any]:
    data = {key: value for key, value in data.items() if key != "first_k_dense_replace"}
    data["num_hidden_layers"] = len(layers)
    for field in ("layer_types", "mlp_layer_types", "indexer_types"):
        data[field] = [getattr(config, field)[layer] for layer in layers]
    return data


def _scaled(name: str, scale: str) -> dict[str, Any]:
    full = PRESETS[name]
    if scale == "full":
        return dict(full)
    config = ModelConfig.from_dict(full, name)
    kinds = list(zip(config.mlp_layer_types, config.attention_kinds, strict=True))
    layers = [kinds.index(kind) for kind in dict.fromkeys(kinds)]  # the first of each kind
    data = _with_layers(full, config, layers)
    small = {key: value for key, value in _TINY.items() if key in full} if scale == "tiny" else {}
    return data | small
