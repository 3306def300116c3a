"""Configs and weights as transformers writes them, and no fault: neither dtype says anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundles import LENGTH
from checkpoints import SHAPES, make_oracle, save
from test_faults import problems
from transformers import GlmMoeDsaForCausalLM

from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.validation import ValidationOptions, validate_bundle

# Published models have 32 heads in their indexers; a score is a sum over them.
HEADS = 32
FAST = "shared_sparse"
TRIED = SHAPES | {FAST: SHAPES["shared_indexer"] | SHAPES["all_sparse"]}  # of the fewest kinds
SHAPES_TRIED = [
    pytest.param(name, marks=() if name == FAST else pytest.mark.slow) for name in TRIED
]


def initialized(seed: int, name: str) -> GlmMoeDsaForCausalLM:
    """A model with the weights that transformers itself draws, in bfloat16."""
    model = make_oracle(seed, **TRIED[name], index_n_heads=HEADS)
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            module._is_hf_initialized = False
        model.init_weights()
    return model.to(torch.bfloat16)


@pytest.mark.parametrize("drawn", ["wide", pytest.param("initialized", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SHAPES_TRIED)
def test_configs_that_transformers_writes(tmp_path: Path, name: str, drawn: str) -> None:
    seed = list(TRIED).index(name)
    if drawn == "wide":
        model = make_oracle(seed, **TRIED[name], index_n_heads=HEADS).to(torch.bfloat16)
    else:
        model = initialized(seed, name)
    save(model, tmp_path / "c")
    options = ExportOptions(("float32", "bfloat16"), LENGTH)
    export_checkpoint(tmp_path / "c", tmp_path / "b", options)
    for backend, dtype in (("onnxruntime", "float32"), ("graph", "bfloat16")):
        settings = ValidationOptions(backend, dtype, cases=CaseOptions(seed=seed))
        report = validate_bundle(tmp_path / "b", settings)
        assert report["ok"], problems(report)
