"""What transformers makes of a `config.json` before a model is built of it: defaults of absent
fields, older names, nested configs, where the rotary base stands.
"""

from __future__ import annotations

from typing import Any

# Of `GlmMoeDsaConfig`, for each field that says what is computed. An absent end token is none: what
# it has for it does not reach the model's generation config.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 154880, "hidden_size": 6144, "intermediate_size": 12288,
    "moe_intermediate_size": 2048, "num_hidden_layers": 78, "num_attention_heads": 64,
    "n_shared_experts": 1, "n_routed_experts": 256, "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512, "q_lora_rank": 2048, "qk_rope_head_dim": 64, "v_head_dim": 256,
    "qk_nope_head_dim": 192, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 8,
    "norm_topk_prob": True, "hidden_act": "silu", "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "attention_bias": False, "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 32,
    "mlp_bias": False, "first_k_dense_replace": 3,
}  # fmt: skip
ROPE_THETA = 10_000.0
OLDER_LAYER_TYPES = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}
# The experts' older names win over the newer one, the last one most.
_EXPERT_COUNTS = ("num_experts", "num_local_experts")
# torch's names of dtypes; a model in float64 runs in float32, as no block takes more.
DTYPE_NAMES = {
    "float32": "float32", "float": "float32", "float64": "float32", "double": "float32",
    "bfloat16": "bfloat16", "float16": "float16", "half": "float16", "auto": None,
}  # fmt: skip


def own_config(data: dict[str, Any], model_types: tuple[str, ...]) -> dict[str, Any]:
    """`data`, or where it is that of another model the config of ours that is nested in it, such as
    `text_config`; with the quantisation that the outer one names, if it has none.
    """
    if data.get("model_type") in model_types:
        return data
    for value in data.values():
        if isinstance(value, dict) and value.get("model_type") in model_types:
            outer = data.get("quantization_config")
            return value if outer is None else {"quantization_config": outer} | value
    return data


def with_defaults(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with what is absent, and the experts' number under the name of today."""
    experts = [data[name] for name in _EXPERT_COUNTS if data.get(name) is not None]
    return DEFAULTS | data | ({"n_routed_experts": experts[-1]} if experts else {})


def rope_parameters(data: dict[str, Any]) -> Any:
    """The rotary parameters, `rope_theta` and `rope_type` included: `rope_scaling` wins, and what
    names no base takes the one of the config itself.
    """
    rope = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        return rope
    theta = data.get("rope_theta", ROPE_THETA)
    return {"rope_theta": theta, "rope_type": rope.get("type", "default")} | rope
