"""The config: equal to transformers' reading, and clear about everything it refuses."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import GlmMoeDsaConfig

from glm_trt.model.config import ModelConfig
from glm_trt.model.config_defaults import DEFAULTS, ROPE_THETA
from glm_trt.model.errors import ConfigError

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"
DATA: dict[str, Any] = json.loads((TINY / "config.json").read_text())
HYBRID: dict[str, Any] = DATA | dict(
    layer_types=["linear_attention", "indexed_attention", "full_attention"] * 2,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
    linear_value_head_dim=8, linear_conv_kernel_dim=4,
)  # fmt: skip


def test_reads_the_tiny_config() -> None:
    config = ModelConfig.from_directory(TINY)
    assert config.mlp_layer_types == ("dense",) + ("sparse",) * 5
    assert (config.hidden_size, config.rope_theta, config.dtype) == (256, 1e6, "bfloat16")
    assert (config.eos_token_ids, config.num_nextn_predict_layers) == ((0,), 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"index_topk_freq": 4},
        {"index_topk_freq": 3, "index_skip_topk_offset": 5},
        {"index_topk_pattern": "FSSF" * 19 + "FS"},
        {"first_k_dense_replace": 0},
    ],
)
def test_agrees_with_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = GlmMoeDsaConfig(**options)
    theirs.save_pretrained(tmp_path)
    ours = ModelConfig.from_directory(tmp_path)
    for name in ("layer_types", "mlp_layer_types", "indexer_types"):
        assert list(getattr(ours, name)) == getattr(theirs, name)
    derived = ModelConfig.from_dict({**DATA, "num_hidden_layers": 78, "layer_types": None,
        "mlp_layer_types": ["dense"] * 78, "indexer_types": None, **options})  # fmt: skip
    assert list(derived.indexer_types) == theirs.indexer_types


def test_defaults_are_those_of_transformers() -> None:
    theirs = GlmMoeDsaConfig()
    assert {name: getattr(theirs, name) for name in DEFAULTS} == DEFAULTS
    assert theirs.rope_parameters["rope_theta"] == ROPE_THETA
    ours = ModelConfig.from_dict({"model_type": "glm_moe_dsa"})
    skipped = {"eos_token_ids", "quantization", "dtype", "num_nextn_predict_layers", "rope_theta"}
    for field in fields(ours):
        if field.name not in skipped and not field.name.startswith("linear_"):
            found = getattr(ours, field.name)
            expected = getattr(theirs, field.name)
            assert found == (tuple(expected) if isinstance(expected, list) else expected)
    assert ours.eos_token_ids == ()


@pytest.mark.parametrize("field", ["kv_lora_rank", "index_topk", "norm_topk_prob", "rms_norm_eps"])
def test_null_is_no_default(field: str) -> None:
    """Nor is it one for transformers."""
    with pytest.raises(ConfigError, match=rf"config\.json: (missing )?{field}"):
        ModelConfig.from_dict({**DATA, field: None})
    with pytest.raises(StrictDataclassError):
        GlmMoeDsaConfig(**{**DATA, field: None})


def test_attention_kinds() -> None:
    """What `indexer_types` says of other layers means nothing, the first one's included."""
    types = ["shared", "full", "full", "full", "shared", "shared"]
    config = ModelConfig.from_dict({**HYBRID, "indexer_types": types})
    assert config.attention_kinds == ("linear", "indexed", "full", "linear", "shared", "full")


@pytest.mark.parametrize("last", ["indexed", "full"])
def test_prediction_layers_do_not_attend_linearly(last: str) -> None:
    """They have an indexer where the decoder has one, whatever its first layers are."""
    types = ["linear_attention"] * 5 + [f"{last}_attention"]
    config = ModelConfig.from_dict({**HYBRID, "layer_types": types, "indexer_types": None})
    assert config.num_nextn_predict_layers == 1 and config.attention_kind(6) == last


def test_experts_beyond_the_kept_groups_are_refused() -> None:
    """16 in 4 groups, of which 2 are kept."""
    data = {**HYBRID, "n_group": 4, "topk_group": 2}
    assert ModelConfig.from_dict({**data, "num_experts_per_tok": 8}).num_experts_per_tok == 8
    with pytest.raises(ConfigError, match="num_experts_per_tok: expected at most 8"):
        ModelConfig.from_dict({**data, "num_experts_per_tok": 9})


@pytest.mark.parametrize("prefix", ["index_", "linear_"])
def test_sizes_are_required_where_a_layer_needs_them(prefix: str) -> None:
    """Those of an indexer have transformers' defaults; it has no layers of the other kind."""
    data = {k: v for k, v in HYBRID.items() if not k.startswith(prefix)}
    if prefix == "linear_":
        with pytest.raises(ConfigError, match=rf"missing {prefix}\w+, {prefix}"):
            ModelConfig.from_dict(data)
    else:
        assert ModelConfig.from_dict(data).index_topk == DEFAULTS["index_topk"]
    config = ModelConfig.from_dict({**data, "layer_types": ["full_attention"] * 6})
    assert (config.index_topk == 0) == (prefix == "index_")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"),
        ("hidden_size", "256"),
        ("hidden_size", True),
        ("hidden_size", 0),
        ("rms_norm_eps", float("nan")),
        ("norm_topk_prob", 1),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}),
        ("layer_types", ["sliding_attention"] * 6),
        ("layer_types", 3),
        ("linear_num_key_heads", 3),
        ("linear_conv_kernel_dim", 0),
        ("layer_types", ["indexed_attention"] * 5),
        ("indexer_types", ["shared", "shared"] + ["full"] * 4),
        ("mlp_layer_types", ["dense"] * 5 + ["other"]),
        ("n_group", 3),
        ("n_group", 16),
        ("topk_group", 2),
        ("num_experts_per_tok", 17),
        ("index_head_dim", 8),
        ("hidden_act", "gelu"),
        ("mlp_bias", None),
        ("per_layer_config", {"0": {"index_topk": 4}}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_parameters", {"indexed_attention": {"rope_type": "default"}}),
        ("rope_parameters", "default"),
        ("rope_theta", None),
        ("index_topk_pattern", 3),
        ("index_topk_pattern", list("FSFSFS")),
        ("num_nextn_predict_layers", "1"),
        ("scoring_func", "softmax"),
        ("rope_interleave", False),
        ("quantization_config", {"quant_method": "awq"}),
        ("eos_token_id", "0"),
        ("eos_token_id", [True]),
        ("dtype", "int8"),
        ("dtype", 16),
    ],
)
def test_refused_values_are_named(field: str, value: object) -> None:
    fields = {"index_topk_pattern": {"indexer_types": None}, "rope_theta": {"rope_parameters": {}}}
    with pytest.raises(ConfigError, match=field.replace("key_heads", "value_heads")):
        ModelConfig.from_dict({**HYBRID, **fields.get(field, {}), field: value})


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not readable as JSON"):
        ModelConfig.from_directory(tmp_path)


def test_derived_fields_are_those_of_transformers() -> None:
    """50 configs that say something else of them, or nothing: what transformers accepts is read so
    too, unless the first indexer has nothing to share.
    """
    draw, accepted = random.Random(0), 0
    for _ in range(50):
        count = draw.randint(1, 7)
        kinds = [draw.choice(["full", "shared"]) for _ in range(count)]
        letters = "".join(kind[0].upper() for kind in kinds)
        choices: dict[str, list[Any]] = {
            "head_dim": [192, 64, 1],
            "qk_head_dim": [7, 256],
            "num_key_value_heads": [1, 3, 64],
            "num_experts": [None, 4, 32],
            "num_local_experts": [8],
            "first_k_dense_replace": [0, 1, 9],
            "mlp_layer_types": [None, [draw.choice(["dense", "sparse"]) for _ in range(count)]],
            "layer_types": [None, ["indexed_attention"] * count],
            "indexer_types": [None, kinds],
            "index_topk_pattern": [None, letters, kinds],
            "index_topk_freq": [-1, 0, 1, 2, 4],
            "index_skip_topk_offset": [-1, 0, 1, 3],
        }
        base = {k: v for k, v in DATA.items() if k not in choices}
        said = {k: draw.choice(v) for k, v in choices.items() if draw.random() < 0.4}
        data = base | {"num_hidden_layers": count} | said
        try:
            theirs = GlmMoeDsaConfig(**data)
        except Exception:  # what it raises is its own affair
            continue
        if theirs.indexer_types[0] == "shared":
            with pytest.raises(ConfigError, match="nothing to share yet"):
                ModelConfig.from_dict(data)
            continue
        accepted += 1
        ours = ModelConfig.from_dict(data)
        for name in ("layer_types", "mlp_layer_types", "indexer_types"):
            assert list(getattr(ours, name)) == getattr(theirs, name), data
        assert ours.n_routed_experts == theirs.n_routed_experts
        assert ours.qk_rope_head_dim == theirs.head_dim
    assert accepted >= 30
