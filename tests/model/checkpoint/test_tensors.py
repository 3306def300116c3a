"""The tensors that a config announces: GLM-5.1's counts, and what transformers stores."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SHAPES, make_oracle, save
from hybrids import HYBRIDS, make_hybrid, save_hybrid

from glm_trt.model.checkpoint.presets import preset_config
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.tensors import COMPONENTS, TensorSpec, checkpoint_tensors
from glm_trt.model.config import ModelConfig

GLM_5_1 = preset_config("glm-5.1", "full")
HYBRID = preset_config("glm-5.1-hybrid", "full")
CONFIG = ModelConfig.from_dict(GLM_5_1)


@pytest.fixture(scope="module")
def specs() -> list[TensorSpec]:
    return list(checkpoint_tensors(CONFIG))


def test_glm_5_1_counts(specs: list[TensorSpec]) -> None:
    assert len(specs) == len({spec.name for spec in specs}) == 59_870
    decoder: Counter[str] = Counter()
    for spec in specs:
        decoder["mtp" if spec.layer == 78 else spec.component] += spec.elements
    assert decoder["embedding"] == decoder["head"] == 951_582_720
    assert decoder["mla"] == 78 * 165_022_208
    assert decoder["indexer"] == 78 * 9_371_904
    assert decoder["dense_mlp"] == 3 * 226_492_416
    assert decoder["routed_experts"] == 724_775_731_200
    assert decoder["shared_experts"] == 2_831_155_200
    assert decoder["mtp"] == 9_952_920_576
    assert decoder.total() == 753_864_139_008
    assert decoder.total() - decoder["mtp"] == 743_911_218_432


def test_names_shapes_and_dtypes(specs: list[TensorSpec]) -> None:
    by_name = {spec.name: spec for spec in specs}
    prefix = "model.layers.{}."
    expected: dict[str, tuple[tuple[int, ...], str, int | None]] = {
        "model.embed_tokens.weight": ((154880, 6144), "bfloat16", None),
        prefix.format(0) + "mlp.down_proj.weight": ((6144, 12288), "bfloat16", 0),
        prefix.format(3) + "mlp.gate.e_score_correction_bias": ((256,), "float32", 3),
        prefix.format(77) + "mlp.experts.255.up_proj.weight": ((2048, 6144), "bfloat16", 77),
        prefix.format(78) + "eh_proj.weight": ((6144, 12288), "bfloat16", 78),
        prefix.format(78) + "self_attn.indexer.weights_proj.weight": ((32, 6144), "bfloat16", 78),
    }
    for name, (shape, dtype, layer) in expected.items():
        spec = by_name[name]
        assert (spec.shape, spec.dtype, spec.layer) == (shape, dtype, layer)
    assert {spec.component for spec in specs} == set(COMPONENTS) - {"linear_attention"}


def test_options(specs: list[TensorSpec]) -> None:
    without = list(checkpoint_tensors(CONFIG, with_mtp=False, with_head=False))
    assert {spec.name for spec in specs if spec.layer != 78} - {s.name for s in without} == {
        "lm_head.weight"
    }
    stacked = checkpoint_tensors(CONFIG, stacked=range(79))
    assert sum(spec.elements for spec in stacked) == 753_864_139_008
    dtypes = {spec.dtype for spec in checkpoint_tensors(CONFIG, dtype="float16")}
    assert dtypes == {"float16", "float32"}
    tied = ModelConfig.from_dict(GLM_5_1 | {"tie_word_embeddings": True})
    assert "head" not in {spec.component for spec in checkpoint_tensors(tied)}


def test_linear_layers() -> None:
    config = ModelConfig.from_dict(HYBRID)
    layer = [spec for spec in checkpoint_tensors(config) if spec.layer == 0]
    shapes = {s.name.removeprefix("model.layers.0.linear_attn."): s.shape
              for s in layer if s.component == "linear_attention"}  # fmt: skip
    assert shapes == {
        "in_proj_qkvz.weight": (20480, 6144), "in_proj_ba.weight": (128, 6144),
        "conv1d.weight": (12288, 1, 4), "A_log": (64,), "dt_bias": (64,), "norm.weight": (128,),
        "out_proj.weight": (6144, 8192),
    }  # fmt: skip
    components = {spec.component for spec in checkpoint_tensors(config)}
    assert "indexer" not in components


@pytest.mark.parametrize("name", ["plain", "shared_indexer", "attention_bias", "shared_experts"])
def test_is_what_transformers_stores(tmp_path: Path, name: str) -> None:
    changes: dict[str, Any] = SHAPES[name]
    _same(Checkpoint.open(save(make_oracle(**changes), tmp_path)))


@pytest.mark.parametrize("name", HYBRIDS)
def test_is_what_hybrids_store(tmp_path: Path, name: str) -> None:
    _same(Checkpoint.open(save_hybrid(make_hybrid(name), tmp_path)))


def _same(stored: Checkpoint) -> None:
    stacked = {i for i in range(stored.config.num_hidden_layers) if stored.experts_stacked(i)}
    ours = checkpoint_tensors(stored.config, stacked=stacked, with_mtp=stored.has_mtp)
    theirs = {name: stored.info(name).shape for name in stored.names}
    assert {spec.name: spec.shape for spec in ours} == theirs


def test_is_lazy_and_needs_no_torch() -> None:
    first = itertools.islice(checkpoint_tensors(CONFIG), 1)
    assert [spec.name for spec in first] == ["model.embed_tokens.weight"]
    script = (
        "import sys, glm_trt.model.checkpoint.tensors; print({'torch', 'numpy'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
