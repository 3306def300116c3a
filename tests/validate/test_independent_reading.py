"""The yardstick reads the checkpoint by itself: a bundle that reads it wrongly is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import LENGTH, make_checkpoint
from checkpoints import make_oracle, save
from manifests import edit_manifest, list_again
from safetensors.torch import load_file, save_file

from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint, model_blocks
from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.read import EMBEDDING, HEAD, SINGLE_FILE, Checkpoint
from glm_trt.model.checkpoint.weights import empty_block, load_weights
from glm_trt.model.errors import BundleError
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.running.published import PublishedWeights
from glm_trt.validate.validation import ValidationOptions, validate_bundle

Rows = dict[str, dict[str, Any]]  # the bindings of a block by their inputs' names


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a checkpoint whose head is stored, though its config ties it to the embedding."""
    place = tmp_path_factory.mktemp("independent")
    save(make_oracle(tie_word_embeddings=True, index_topk=8, n_routed_experts=4), place / "c")
    tensors = load_file(place / "c" / SINGLE_FILE)
    tensors[HEAD] = tensors[EMBEDDING].roll(1, 0)
    save_file(tensors, place / "c" / SINGLE_FILE)
    export_checkpoint(place / "c", place / "b", ExportOptions(("float32",), LENGTH))
    return place / "b"


def failing(bundle: Path, **options: Any) -> list[str]:
    """Names of the blocks that validation finds wrong."""
    options |= {"cases": CaseOptions(longest=24)}
    report = validate_bundle(bundle, ValidationOptions(**options))
    names = [block["name"] for block in report["blocks"] if not block["ok"]]
    assert report["ok"] or names
    return names


def exchange(first: str, second: str) -> Callable[[Rows, Rows], None]:
    """Let two inputs of a block read one another's tensors."""

    def change(rows: Rows, _: Rows) -> None:
        a, b = rows[first], rows[second]
        a["tensors"], b["tensors"] = b["tensors"], a["tensors"]

    return change


def other_layer(rows: Rows, others: Rows) -> None:
    rows["self_attn.o_proj.weight"]["tensors"] = others["self_attn.o_proj.weight"]["tensors"]


def other_experts(rows: Rows, others: Rows) -> None:
    rows["mlp.experts.down_proj"]["tensors"] = others["mlp.experts.down_proj"]["tensors"]


def up_before_gate(rows: Rows, _: Rows) -> None:
    rows["mlp.experts.gate_up_proj"]["tensors"].reverse()


def next_rows(rows: Rows, _: Rows) -> None:
    for name in ("start", "stop"):
        rows["self_attn.k_up_proj"]["arguments"][name] += 1


def tied(rows: Rows, _: Rows) -> None:
    rows["lm_head.weight"]["tensors"] = [EMBEDDING]


FAULTS: dict[str, tuple[str, Callable[[Rows, Rows], None]]] = {
    "the tensor of another layer": ("layer.2", other_layer),
    "the experts of another layer": ("layer.2", other_experts),
    "gate and up exchanged": ("layer.0", exchange("mlp.gate_proj.weight", "mlp.up_proj.weight")),
    "gate and up of experts exchanged": ("layer.1", up_before_gate),
    "norms exchanged": (
        "layer.1", exchange("input_layernorm.weight", "post_attention_layernorm.weight"),
    ),
    "a wrong slice": ("layer.1", next_rows),
    "a tied head, though one is stored": ("head", tied),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_binding_fails(bundle: Path, fault: str) -> None:
    block, change = FAULTS[fault]
    wrong = bundle.with_name(fault.replace(" ", "-").replace(",", ""))
    shutil.copytree(bundle, wrong)
    path = wrong / "bindings.json"
    content = json.loads(path.read_text())
    rows, others = ({x["name"]: x for x in content[of]} for of in (block, "layer.1"))
    change(rows, others)
    path.write_text(json.dumps(content))
    list_again(wrong, path.name)
    assert failing(wrong) == [block]


def test_a_sound_bundle_passes(bundle: Path) -> None:
    assert failing(bundle) == []


def test_blocks_of_other_layers_are_refused(bundle: Path) -> None:
    wrong = shutil.copytree(bundle, bundle.with_name("layers"))

    def exchanged(manifest: dict[str, Any]) -> None:
        manifest["blocks"][2]["layer"], manifest["blocks"][3]["layer"] = 2, 1

    edit_manifest(wrong, exchanged)
    with pytest.raises(BundleError, match=r"block 2: expected .'layer.1', 1., found .'layer.1', 2"):
        failing(wrong)


def test_copied_weights_are_compared_with_the_checkpoint(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts that export exchanged: found with the checkpoint, and not without, as it says."""
    right = b.expert_parts

    def exchanged(binding: b.Binding, source: b.TensorSource, expert: int) -> Any:
        return right(binding, source, expert ^ 1)

    checkpoint, wrong = bundle.with_name("c"), bundle.with_name("copied")
    with monkeypatch.context() as patch:
        patch.setattr(b, "expert_parts", exchanged)
        export_checkpoint(checkpoint, wrong, ExportOptions(("float32",), LENGTH, materialize=True))
    assert failing(wrong, checkpoint=checkpoint) == ["layer.1", "layer.2"]
    assert failing(wrong) == []


def test_a_fault_of_the_shared_reader_fails(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong at export and still wrong when it is judged."""
    checkpoint, wrong = bundle.with_name("c"), bundle.with_name("shared")
    monkeypatch.setattr(Checkpoint, "head_name", EMBEDDING)
    head_rows = b._head_rows
    monkeypatch.setattr(b, "_head_rows", lambda *x, **y: np.roll(head_rows(*x, **y), 1, axis=0))
    export_checkpoint(checkpoint, wrong, ExportOptions(("float32",), LENGTH))
    assert failing(wrong) == ["layer.0", "layer.1", "layer.2", "head"]


@pytest.mark.parametrize("large", [False, True], ids=["held", "in files"])
@pytest.mark.parametrize("name", ["plain", "hybrid", "fp8", "nvfp4"])
def test_reads_what_bindings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, large: bool
) -> None:
    """Every weight of every block, held or left in its file, in each form of storage."""
    checkpoint = Checkpoint.open(make_checkpoint(name, tmp_path))
    config = checkpoint.config
    if large:
        monkeypatch.setattr(b, "LARGE", 100)
    published = PublishedWeights(checkpoint.directory, config)
    for block in model_blocks(checkpoint):
        empty = empty_block(config, block.kind if block.layer is None else block.layer)
        prefix = "" if block.layer is None else f"model.layers.{block.layer}."
        found = published.of(empty, prefix, "model.norm.weight", "float32")
        expected = load_weights(block.bindings, checkpoint, "float32")
        assert found.keys() == expected.keys()
        for of, weight in expected.items():
            assert type(found[of]) is type(weight)
            if isinstance(weight, torch.nn.Module):
                embeds = of == "embed_tokens.weight"
                inputs = torch.arange(3) if embeds else torch.eye(3, config.hidden_size)
                assert torch.equal(found[of](inputs), weight(inputs)), (block.name, of)
            elif isinstance(weight, torch.Tensor):
                assert torch.equal(found[of], weight), (block.name, of)
            else:
                assert torch.equal(found[of][1], weight[1]), (block.name, of)
