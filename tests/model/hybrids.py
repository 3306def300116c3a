"""Hybrid oracles, put together from transformers' own modules: GLM's model with Qwen3-Next's Gated
DeltaNet in some layers, and with attention that selects every position in others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from checkpoints import SMALL, fill
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM, Qwen3NextConfig
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaAttention
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

LINEAR: dict[str, int] = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
    linear_value_head_dim=6, linear_conv_kernel_dim=4,
)  # fmt: skip

# Kinds of attention, layer by layer; the first layer has a dense MLP unless it says otherwise.
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear_first": ("linear indexed full", {}),
    "linear_last": ("full indexed linear", {}),
    "three_to_one": ("linear linear linear full", dict(linear_num_key_heads=4)),
    "shared_across": ("indexed linear shared full shared linear", dict(index_topk=5)),
    "sparse_linear_first": (
        "linear full shared_nothing indexed shared",
        dict(first_k_dense_replace=0, linear_conv_kernel_dim=2, linear_value_head_dim=9),
    ),
    "all_linear": ("linear linear", dict(linear_conv_kernel_dim=3)),
    "all_full": ("full full", {}),
}
_LAYER_TYPES = {"linear": "linear_attention", "full": "full_attention"}


class Linear(Qwen3NextGatedDeltaNet):
    """In the place of GLM's attention; an earlier selection passes through."""

    def forward(self, hidden_states: Tensor, **options: Any) -> Any:
        return super().forward(hidden_states), None, options["prev_topk_indices"]


class Full(GlmMoeDsaAttention):
    """Selects everything; an earlier selection passes through."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        earlier = options.pop("prev_topk_indices")
        every = torch.arange(attention_mask.shape[-1]).expand(*hidden_states.shape[:2], -1)
        output, weights, _ = super().forward(
            hidden_states, attention_mask=attention_mask, prev_topk_indices=every, **options
        )
        return output, weights, earlier


def make_hybrid(name: str, seed: int = 0) -> GlmMoeDsaForCausalLM:
    """A float32 model of `HYBRIDS[name]`; `save_hybrid` stores it."""
    torch.manual_seed(seed)
    words, changes = HYBRIDS[name]
    kinds = words.replace("shared_nothing", "full").split()
    data = SMALL | LINEAR | changes | {
        "num_hidden_layers": len(kinds),
        "indexer_types": ["shared" if "shared" in word else "full" for word in words.split()],
    }  # fmt: skip
    config = GlmMoeDsaConfig(**data)
    config._attn_implementation = config._experts_implementation = "eager"
    model = GlmMoeDsaForCausalLM(config).eval()
    theirs = Qwen3NextConfig(
        layer_types=["linear_attention"] * len(kinds), num_hidden_layers=len(kinds),
        hidden_size=config.hidden_size, rms_norm_eps=config.rms_norm_eps,
        **{field: data[field] for field in LINEAR},
    )  # fmt: skip
    for i, kind in enumerate(kinds):
        layer = model.model.layers[i]
        if kind == "linear":
            layer.self_attn = Linear(theirs, i)
        elif kind == "full":
            layer.self_attn.__class__ = Full
            layer.self_attn.indexer = None
    model.layer_types = [_LAYER_TYPES.get(kind, "indexed_attention") for kind in kinds]
    fill(model)
    return model.eval()


def save_hybrid(model: GlmMoeDsaForCausalLM, directory: Path) -> Path:
    """As transformers writes it, with the names and the config of a hybrid checkpoint."""
    model.save_pretrained(directory)
    linear = {
        f"model.layers.{i}.self_attn."
        for i, kind in enumerate(model.layer_types)
        if kind == "linear_attention"
    }
    tensors = {
        name.replace("self_attn", "linear_attn")
        if any(name.startswith(prefix) for prefix in linear)
        else name: tensor
        for name, tensor in load_file(directory / "model.safetensors").items()
    }
    save_file(tensors, directory / "model.safetensors")
    data = json.loads((directory / "config.json").read_text())
    data["layer_types"] = model.layer_types
    (directory / "config.json").write_text(json.dumps(data))
    return directory
