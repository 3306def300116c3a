"""Configs as people publish and edit them: read as transformers reads them, with its logits."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from test_published import TOLERANCE, ours, relative, theirs

from glm_trt.export.bundle.read import read_manifest
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.errors import CheckpointError, ConfigError

ABSENT = object()
Fields = dict[str, Any]


def configure(directory: Path, fields: Fields) -> None:
    path = directory / "config.json"
    data = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not ABSENT}))


def absent(*names: str) -> Fields:
    return dict.fromkeys(names, ABSENT)


DEFAULT: Fields = {"rope_type": "default"}
LOADS: dict[str, Fields] = {
    "head_dim": dict(head_dim=192, qk_head_dim=7),
    "older layer types": dict(layer_types=["deepseek_sparse_attention"] * 3),
    "other older layer types": dict(layer_types=["qwen_sparse_attention"] * 3),
    "base outside": dict(rope_parameters=DEFAULT, rope_theta=5e5),
    "base absent": dict(rope_parameters=DEFAULT),
    "rope absent": absent("rope_parameters"),
    "rope null": dict(rope_parameters=None),
    "rope of older files": dict(rope_parameters=ABSENT, rope_theta=123),
    "two bases": dict(rope_theta=123.0),
    "scaling by default": dict(rope_scaling=DEFAULT),
    "scaling with a base": dict(rope_scaling={**DEFAULT, "rope_theta": 77.0}),
    "scaling of older files": dict(
        rope_scaling={"type": "default"}, rope_parameters=ABSENT, rope_theta=77.0
    ),
    "scaling empty": dict(rope_scaling={}),
    "partial rotation": dict(partial_rotary_factor=0.5),
    "no groups": absent("n_group", "topk_group"),
    "no shared count": absent("n_shared_experts"),
    "no renormalisation": absent("norm_topk_prob"),
    "no scaling factor": absent("routed_scaling_factor"),
    "no epsilon": absent("rms_norm_eps"),
    "no positions": absent("max_position_embeddings"),
    "no list of layers": absent("layer_types", "mlp_layer_types", "head_dim"),
    "num_experts": dict(num_experts=4, n_routed_experts=9),
    "num_local_experts": dict(num_local_experts=4, num_experts=7, n_routed_experts=ABSENT),
    "fields of other programs": dict.fromkeys(
        ("scoring_func", "topk_method", "rope_interleave", "indexer_rope_interleave")
    ),
    "swish": dict(hidden_act="swish"),
    "mlp_bias": dict(mlp_bias=True),
    "no prediction layers": dict(num_nextn_predict_layers=None),
    "longer indexer_types": dict(indexer_types=["full", "shared", "full", "full"]),
    "a pattern": dict(indexer_types=ABSENT, index_topk_pattern="FSFF"),
    "end tokens beyond": dict(eos_token_id=[3, 154820, -1]),
    "torch_dtype": dict(dtype=None, torch_dtype="bfloat16"),
    "half": dict(dtype="half"),
    "float64": dict(dtype="float64"),
    "a class of another name": dict(architectures=["GlmMoeDsaModelOfMine"]),
    "numbers beyond JSON": dict(foo=float("nan"), bar=[-float("inf")], baz=10**30),
}
# transformers refuses them, or fails on the first token; the values are those without the edit.
LOADS_HERE_ALONE: dict[str, Fields] = {
    "fewer key-value heads": dict(num_key_value_heads=1),
    "key-value heads absent": absent("num_key_value_heads"),
    "dtype auto": dict(dtype="auto"),
    "dtype of torch": dict(dtype="torch.bfloat16"),
    "whole numbers": dict(routed_scaling_factor=2, first_k_dense_replace=None),
}
# Of what transformers loads, with the words that name it.
REFUSED: dict[str, tuple[Fields, str]] = {
    "layer types of a hybrid": (dict(layer_types=["full_attention"] * 3), "indexer.k_norm"),
    "other layer types": (dict(layer_types=["sliding_attention"] * 3), "layer_types.0.: expected"),
    "scaled rotation": (
        dict(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling.rope_type: .*'linear'"),
    "another rotation": (dict(rope_interleave=False), "rope_interleave: expected True"),
    "another rotation of the indexer": (
        dict(indexer_rope_interleave=False), "indexer_rope_interleave: expected True"),
    "other scores": (dict(scoring_func="softmax"), "scoring_func: expected 'sigmoid'"),
    "another choice": (dict(topk_method="greedy"), "topk_method: expected 'noaux_tc'"),
    "another activation": (dict(hidden_act="gelu"), "hidden_act: expected 'silu'"),
    "layers of their own": (
        dict(per_layer_config={"0": {"rms_norm_eps": 1e-2}}), "per_layer_config: expected None"),
    "numbers that are not positive": (dict(routed_scaling_factor=0.0), "routed_scaling_factor: "),
    "epsilon 0": (dict(rms_norm_eps=0.0), "rms_norm_eps: .*positive"),
    "nothing selected": (dict(index_topk=0), "index_topk: expected an integer of at least 1"),
    "experts beyond the kept groups": (
        dict(n_group=2, topk_group=1), "num_experts_per_tok: expected at most 2"),
    "prediction layers that are no number": (
        dict(num_nextn_predict_layers="1"), "num_nextn_predict_layers: expected an integer"),
    "prediction layers below 0": (
        dict(num_nextn_predict_layers=-1), "num_nextn_predict_layers: expected an integer of"),
    "unknown indexer_types": (
        dict(indexer_types=["full", "shared", "other"]), "indexer_types.2.: expected one of"),
    "indexers that the file lacks": (absent("indexer_types"), "missing 5 tensor"),
    "a dtype of codes": (dict(dtype="int8"), "dtype: expected one of"),
    "no model_type": (absent("model_type"), "model_type: expected one of"),
    "another model_type": (dict(model_type="deepseek_v32"), "model_type: expected one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOADS)
def test_configs_are_read_as_transformers_reads_them(directory: Path, case: str) -> None:
    configure(directory, LOADS[case])
    assert relative(ours(directory), theirs(directory)) < TOLERANCE


@pytest.mark.parametrize("case", LOADS_HERE_ALONE)
def test_configs_that_are_read_here_alone(base: Path, directory: Path, case: str) -> None:
    fields = LOADS_HERE_ALONE[case]
    configure(directory, fields)
    found = ours(directory)
    with pytest.raises(Exception):  # noqa: B017 — its own errors
        theirs(directory)
    if case == "whole numbers":
        configure(directory, dict(routed_scaling_factor=2.0, first_k_dense_replace=ABSENT))
    else:
        configure(directory, json.loads((base / "config.json").read_text()))
    assert relative(found, theirs(directory)) < TOLERANCE


@pytest.mark.parametrize("case", REFUSED)
def test_configs_that_are_refused(directory: Path, case: str) -> None:
    fields, message = REFUSED[case]
    configure(directory, fields)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        Checkpoint.open(directory)


def test_a_nested_config(directory: Path) -> None:
    """Of a model that has ours in it; one that says so itself is refused by transformers."""
    path = directory / "config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({"model_type": "glm_vision", "text_config": data}))
    assert relative(ours(directory), theirs(directory)) < TOLERANCE
    path.write_text(json.dumps({"model_type": "glm_moe_dsa", "text_config": data}))
    with pytest.raises(CheckpointError, match="missing"):
        Checkpoint.open(directory)
    with pytest.raises(AttributeError):
        theirs(directory)


def test_end_tokens_beyond_the_vocabulary(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "generation_config.json").unlink()
    for value, expected in (([3, 154820, -1], (3,)), (5, (5,)), (None, ()), (ABSENT, ())):
        configure(directory, {"eos_token_id": value})
        with caplog.at_level(logging.WARNING, "glm_trt"):
            assert Checkpoint.open(directory).eos_token_ids() == expected
    (notice,) = [record.getMessage() for record in caplog.records]
    assert "config.json: eos_token_id: [154820, -1]" in notice


def test_numbers_beyond_json_are_part_of_a_bundle(directory: Path, tmp_path: Path) -> None:
    """As transformers writes them: JSON has no NaN, and other programs no large integers."""
    configure(directory, LOADS["numbers beyond JSON"])
    export_checkpoint(directory, tmp_path / "b", ExportOptions(("float32",), 64))
    config = read_manifest(tmp_path / "b").config
    assert config["foo"] == {"__float__": "NaN"} and config["baz"] == 1e30
    assert config["bar"] == [{"__float__": "-Infinity"}]
    configure(directory, {"foo": "\ud800"})
    with pytest.raises(CheckpointError, match="cannot be part of a bundle"):
        export_checkpoint(directory, tmp_path / "b", ExportOptions(("float32",), 64))
