"""Checkpoints as people publish them: what transformers loads, with its logits."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import save_mixed
import torch
from checkpoints import SMALL, make_oracle, reload_oracle, save
from newest_package import newest
from safetensors.torch import load_file, save_file

import glm_trt
from glm_trt.cli import main
from glm_trt.engines.python import cut_graph as cut_graph
from glm_trt.engines.python import onnxruntime_backend
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint import read as checkpoint
from glm_trt.model.checkpoint.presets import preset_config
from glm_trt.model.checkpoint.read import EMBEDDING, HEAD, SINGLE_FILE, Checkpoint
from glm_trt.model.checkpoint.weights import load_model

TOLERANCE = 2e-5
IDS, FLOATS = save_mixed.IDS, save_mixed.FLOATS
# All 50 in the full run, the first ones always.
VARIATIONS = [i if i < 3 else pytest.param(i, marks=pytest.mark.slow) for i in range(50)]


def relative(found: Any, expected: torch.Tensor) -> float:
    found = torch.as_tensor(found)
    return float((found - expected).double().norm() / expected.double().norm())


@torch.no_grad()
def theirs(directory: Path) -> torch.Tensor:
    """Logits [B, S, vocab] of what transformers loads."""
    logits: torch.Tensor = reload_oracle(directory)(IDS, use_cache=False).logits
    return logits


def ours(directory: Path) -> torch.Tensor:
    """Those of the eager model."""
    model = load_model(Checkpoint.open(directory))
    states = model.empty_states(*IDS.shape)
    return model(IDS, states, torch.zeros(len(IDS), dtype=torch.int64))[0]


def change_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def small(directory: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """A checkpoint of one dense and one sparse layer; its tensors."""
    save(make_oracle(num_hidden_layers=2, n_routed_experts=4, **changes), directory)
    return load_file(directory / SINGLE_FILE)


def test_the_config_of_glm_5_2(tmp_path: Path) -> None:
    """As published, with small widths and its first 11 layers; 16 of up to 21 tokens are kept."""
    published = preset_config("glm-5.2", "full", layers=11)
    small_sizes = {k: v for k, v in SMALL.items() if k in published and isinstance(v, int)}
    small_sizes |= dict(head_dim=192, num_hidden_layers=11, n_routed_experts=4)
    save(make_oracle(**(published | small_sizes | dict(index_n_heads=32))), tmp_path / "c")
    sizes = small_sizes | dict(index_n_heads=32, dtype="float32", eos_token_id=[0])
    (tmp_path / "c" / "config.json").write_text(json.dumps(published | sizes))
    config = Checkpoint.open(tmp_path / "c").config
    assert [i for i in range(11) if config.indexer_types[i] == "full"] == [0, 1, 2, 6, 10]
    assert (config.rope_theta, config.index_topk) == (8e6, 16)
    assert relative(ours(tmp_path / "c"), theirs(tmp_path / "c")) < TOLERANCE
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(("float32",), 64))
    with glm_trt.load(tmp_path / "b") as runtime:
        found = runtime.forward(IDS.numpy())
    assert relative(found, theirs(tmp_path / "c")) < TOLERANCE


def test_a_bfloat16_checkpoint_with_its_router_in_float32(tmp_path: Path) -> None:
    """As transformers 5.24 saves one: the router as it is, whatever the model runs in."""
    tensors = small(tmp_path)
    router = "model.layers.1.mlp.gate"
    wide = (f"{router}.weight", f"{router}.e_score_correction_bias")
    save_file({n: t if n in wide else t.bfloat16() for n, t in tensors.items()},
              tmp_path / SINGLE_FILE)  # fmt: skip
    change_config(tmp_path, dtype="bfloat16")
    assert relative(ours(tmp_path), theirs(tmp_path)) < TOLERANCE
    held = load_model(Checkpoint.open(tmp_path), "bfloat16").layers[1].mlp.gate.weight
    assert torch.equal(held, tensors[wide[0]])


def mixed(directory: Path, seed: int, **changes: Any) -> None:
    """Each tensor in a float dtype of its own."""
    draw = random.Random(seed)
    tensors = small(directory, **changes)
    save_file({n: t.to(draw.choice(FLOATS)) for n, t in tensors.items()}, directory / SINGLE_FILE)
    change_config(directory, dtype=draw.choice(("float32", "bfloat16", "float16")))


@pytest.mark.parametrize("seed", VARIATIONS)
def test_each_tensor_in_a_dtype_of_its_own(tmp_path: Path, seed: int) -> None:
    mixed(tmp_path, seed)
    said = json.loads((tmp_path / "config.json").read_text())["dtype"]
    assert Checkpoint.open(tmp_path).dtype == said  # whatever the embedding is in
    assert relative(ours(tmp_path), theirs(tmp_path)) < TOLERANCE


@pytest.mark.parametrize("mapped", [False, True], ids=["stacked", "mapped"])
def test_bundles_of_mixed_dtypes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    """Referenced and copied, with experts stacked in memory or left in their files."""
    mixed(tmp_path / "c", 7)
    if mapped:
        for module in (onnxruntime_backend, b):
            monkeypatch.setattr(module, "LARGE", 0)
    for name, materialize in (("b", False), ("m", True)):
        options = ExportOptions(("float32",), 64, materialize=materialize)
        export_checkpoint(tmp_path / "c", tmp_path / name, options)
        with glm_trt.load(tmp_path / name) as runtime:
            kinds = {type(of) for of in runtime.backend._sessions.values()}
            assert (cut_graph.CutGraph in kinds) == mapped
            assert relative(runtime.forward(IDS.numpy()), theirs(tmp_path / "c")) < TOLERANCE


def test_inspect_says_what_is_cast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By kinds of tensors; what is stored as it is bound is in no list, and is not copied."""
    tensors = {name: t.bfloat16() for name, t in small(tmp_path / "c").items()}
    tensors[HEAD] = tensors[HEAD].float()
    tensors["model.layers.1.mlp.experts.2.up_proj.weight"] = torch.zeros(24, 48, dtype=torch.double)
    save_file(tensors, tmp_path / "c" / SINGLE_FILE)
    change_config(tmp_path / "c", dtype="bfloat16")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(("float32",), 64))
    expected = {
        ("model.layers.*.mlp.gate.weight", "bfloat16", "float32", 1),
        ("model.layers.*.mlp.gate.e_score_correction_bias", "bfloat16", "float32", 1),
        ("model.layers.*.mlp.experts.*.up_proj.weight", "float64", "bfloat16", 1),
        (HEAD, "float32", "bfloat16", 1),
    }
    assert main(["inspect", str(tmp_path / "b"), "--json"]) == 0
    casts = json.loads(capsys.readouterr().out)["casts"]
    assert {tuple(cast.values()) for cast in casts} == expected and len(casts) == len(expected)
    assert main(["inspect", str(tmp_path / "b")]) == 0
    assert f"{HEAD} (1): float32 to bfloat16" in capsys.readouterr().out
    bundle = Bundle.open(tmp_path / "b")
    for block in bundle.blocks:
        for binding in block.bindings:
            if binding.transform == "none":
                (name,) = binding.tensors
                bound = b.bound_tensor(binding, bundle.weights, "bfloat16")
                cast = name == HEAD or ".mlp.gate." in name
                assert np.shares_memory(bound, bundle.weights.tensor(name)) != cast
    (tmp_path / "c").rename(tmp_path / "elsewhere")
    assert main(["inspect", str(tmp_path / "b")]) == 0
    assert "not known: " in capsys.readouterr().out


def test_one_expert_of_mixed_dtypes() -> None:
    """NumPy has no dtype in common of bfloat16 and float16."""
    tensors = {
        f"{expert}.{name}": np.full((2, 3), expert + half / 4, b.NUMPY_DTYPES[dtype])
        for expert in range(2)
        for half, (name, dtype) in enumerate({"gate": "bfloat16", "up": "float16"}.items())
    }
    binding = b.Binding("mlp.experts.gate_up_proj", ("{expert}.gate", "{expert}.up"), (2, 4, 3),
                        "stack_experts", {"experts": 2})  # fmt: skip

    class Source:
        def tensor(self, name: str) -> Any:
            return tensors[name]

        def release(self, name: str) -> None: ...

    whole = b.bound_tensor(binding, Source(), "float32")
    assert all(np.array_equal(b.bound_expert(binding, Source(), i), whole[i]) for i in range(2))
    assert whole[1, 3, 0] == 1.25


TIED = ("differs", "equal", "head alone", "embedding alone")


@pytest.mark.parametrize("seed", VARIATIONS)
def test_a_tied_head_is_what_transformers_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """What is stored wins over what the config says of it, with a notice where they disagree."""
    monkeypatch.setattr(checkpoint, "_COMPARED_ROWS", 16)
    draw = random.Random(seed)
    case = TIED[seed] if seed < len(TIED) else draw.choice(TIED)
    tensors = small(tmp_path, tie_word_embeddings=True)
    if case == "equal":
        tensors[HEAD] = tensors[EMBEDDING].clone()
    elif case == "head alone":
        tensors[HEAD] = tensors.pop(EMBEDDING)
    elif case == "differs":
        tensors[HEAD] = tensors[EMBEDDING].clone()
        row = draw.randrange(len(tensors[HEAD]))
        tensors[HEAD][row:] += draw.choice((0.5, -2.0))
    save_file(tensors, tmp_path / SINGLE_FILE)
    with caplog.at_level(logging.WARNING, "glm_trt"):
        found = ours(tmp_path)
    assert relative(found, theirs(tmp_path)) < TOLERANCE
    notices = [record.getMessage() for record in caplog.records if "glm_trt" in record.name]
    assert len(notices) == (case == "differs")
    assert all("lm_head.weight" in notice and "tie_word_embeddings" in notice for notice in notices)


@pytest.mark.slow
def test_mixed_dtypes_as_the_newest_transformers_saves_them(tmp_path: Path) -> None:
    """40 checkpoints written and judged by it; the release that is installed did the others."""
    python = newest(tmp_path / "venv", "transformers>=5.24")
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here)}
    command = [python, here / "save_mixed.py", tmp_path / "made", "40"]
    subprocess.run(command, env=environment, check=True, timeout=900)
    version = json.loads((tmp_path / "made" / "0" / "config.json").read_text())
    assert tuple(map(int, version["transformers_version"].split(".")[:2])) >= (5, 24)
    routers = set()
    for seed in range(40):
        directory = tmp_path / "made" / str(seed)
        checkpoint = Checkpoint.open(directory)
        router = checkpoint.info("model.layers.1.mlp.gate.weight").dtype
        if seed % 2 == 0:  # as it was saved
            routers.add((checkpoint.dtype, router))
        assert relative(ours(directory), torch.load(directory / save_mixed.LOGITS)) < TOLERANCE
    assert routers == {("float32", "float32"), ("bfloat16", "float32"), ("float16", "float32")}
