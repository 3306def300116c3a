"""Checkpoints written by transformers itself, the oracle of these tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM

SMALL: dict[str, Any] = dict(
    vocab_size=97, hidden_size=48, intermediate_size=80, moe_intermediate_size=24,
    num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, n_shared_experts=1,
    n_routed_experts=8, kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8, v_head_dim=12,
    qk_nope_head_dim=10, n_group=1, topk_group=1, num_experts_per_tok=3, first_k_dense_replace=1,
    index_topk=16, index_head_dim=16, index_n_heads=16, max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6}, pad_token_id=0, bos_token_id=None,
    eos_token_id=0,
)  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "groups": dict(n_group=4, topk_group=4),
    "fewer_groups": dict(n_group=4, topk_group=2),
    "shared_indexer": dict(num_hidden_layers=4, indexer_types=["full", "shared", "full", "shared"]),
    "attention_bias": dict(attention_bias=True),
    "no_renormalisation": dict(norm_topk_prob=False, routed_scaling_factor=1.7),
    "shared_experts": dict(n_shared_experts=3),
    "topk_above_length": dict(index_topk=400),
    "topk_one": dict(index_topk=1),
    "odd_sizes": dict(
        vocab_size=101, hidden_size=37, q_lora_rank=19, kv_lora_rank=13, qk_nope_head_dim=7,
        v_head_dim=11, qk_rope_head_dim=6, index_head_dim=9, moe_intermediate_size=17,
        n_routed_experts=7, num_attention_heads=3, num_key_value_heads=3,
    ),
    "all_sparse": dict(first_k_dense_replace=0),
    "all_dense": dict(first_k_dense_replace=3),
    "tied": dict(tie_word_embeddings=True),
}  # fmt: skip


def make_oracle(seed: int = 0, **changes: Any) -> GlmMoeDsaForCausalLM:
    """A float32 model with weights large enough that every branch matters."""
    torch.manual_seed(seed)
    config = GlmMoeDsaConfig(**{**SMALL, **changes})
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # grouped_mm wants widths that are multiples of 4
    model = GlmMoeDsaForCausalLM(config).eval()
    fill(model)
    return model


def fill(model: torch.nn.Module) -> None:
    """Random weights, drawn in the order of the parameters."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name:
                continue
            spread = 0.3 if "norm" not in name else 0.1
            tensor.copy_(torch.randn_like(tensor) * spread + ("norm.weight" in name))
            if tensor.ndim > 1 and "embed" not in name:
                tensor.mul_(3.0 / tensor.shape[-1] ** 0.5)


def save(model: GlmMoeDsaForCausalLM, directory: Path, **options: Any) -> Path:
    """`model` as transformers' `save_pretrained` writes it."""
    model.save_pretrained(directory, **options)
    return directory


def reload_oracle(directory: Path) -> GlmMoeDsaForCausalLM:
    """The stored checkpoint as transformers itself reads it, in float32.

    Not `model.float()`: a model cast to bfloat16 has rounded its rotary frequencies too.
    """
    model = GlmMoeDsaForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    return model.eval()
