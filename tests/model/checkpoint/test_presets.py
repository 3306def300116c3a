"""The presets are what is published: parameters, tensors, kinds."""

from __future__ import annotations

import pytest
from transformers import GlmMoeDsaConfig

from glm_trt.model.checkpoint.presets import PRESETS, SCALES, preset_config
from glm_trt.model.checkpoint.tensors import checkpoint_tensors
from glm_trt.model.config import ModelConfig


def parameters(config: ModelConfig, with_mtp: bool) -> int:
    return sum(spec.elements for spec in checkpoint_tensors(config, with_mtp=with_mtp))


def test_the_checkpoint() -> None:
    config = ModelConfig.from_dict(preset_config("glm-5.1", "full"))
    assert parameters(config, with_mtp=False) == 743_911_218_432
    assert parameters(config, with_mtp=True) == 753_864_139_008
    assert len(list(checkpoint_tensors(config))) == 59_870
    theirs = GlmMoeDsaConfig()  # whose defaults are those of GLM-5, but for what differs
    for name in ("hidden_size", "kv_lora_rank", "index_topk", "n_routed_experts"):
        assert getattr(config, name) == getattr(theirs, name)


def test_the_hybrid_of_the_model_card() -> None:
    config = ModelConfig.from_dict(preset_config("glm-5.1-hybrid", "full"))
    assert round(parameters(config, with_mtp=True) / 1e9) == 754
    assert config.layer_types[:4] == ("linear_attention",) * 3 + ("full_attention",)
    assert config.layer_types.count("full_attention") == 19
    assert config.index_topk == 0


def test_glm_5_2() -> None:
    """As published: its list of indexers is what frequency and offset say too."""
    data = preset_config("glm-5.2", "full")
    config, theirs = ModelConfig.from_dict(data), GlmMoeDsaConfig(**data)
    assert config.qk_rope_head_dim == theirs.head_dim == 64 != data["head_dim"]
    assert list(config.indexer_types) == theirs.indexer_types
    assert config.indexer_types.count("full") == 21
    derived = {k: v for k, v in data.items() if k != "indexer_types"}
    assert list(config.indexer_types) == GlmMoeDsaConfig(**derived).indexer_types
    assert ModelConfig.from_dict(derived).indexer_types == config.indexer_types


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_scale_has_every_kind(preset: str, scale: str) -> None:
    full, config = (ModelConfig.from_dict(preset_config(preset, s)) for s in ("full", scale))
    kinds = [list(zip(c.mlp_layer_types, c.attention_kinds, strict=True)) for c in (full, config)]
    assert set(kinds[1]) == set(kinds[0])
    assert kinds[1][0][0] == "dense"
    if scale != "full":
        assert len(set(kinds[1])) == len(kinds[1])
    if scale != "tiny":
        assert config.hidden_size == full.hidden_size
