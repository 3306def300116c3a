"""Files and tensors that lie beside a model's own, as people publish them: transformers' logits,
and a notice that names what is not used.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_published import TOLERANCE, change_config, ours, relative, theirs

from glm_trt.engines.planning.source import find_source
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.bindings import layer_bindings
from glm_trt.model.checkpoint.read import HEAD, INDEX_FILE, SINGLE_FILE, Checkpoint
from glm_trt.model.checkpoint.weights import as_torch
from glm_trt.model.errors import CheckpointError, ConfigError
from glm_trt.validate.running.published import PublishedTensors

Tensors = dict[str, torch.Tensor]
Change = Callable[[Path], None]
LAYER = "model.layers."
SHARD = "model-00001-of-00001.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 123\n"


def edit(change: Callable[[Tensors], object]) -> Change:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / SINGLE_FILE)
        change(tensors)
        save_file(tensors, directory / SINGLE_FILE)

    return apply


def added(name: str, tensor: torch.Tensor) -> Change:
    return edit(lambda tensors: tensors.update({name: tensor}))


def configured(**fields: object) -> Change:
    return lambda directory: change_config(directory, **fields)


def written(name: str, content: str | bytes) -> Change:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda directory: (directory / name).write_bytes(data) and None


def marked(name: str) -> Change:
    def apply(directory: Path) -> None:
        path = directory / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    return apply


def all_of(*changes: Change) -> Change:
    def apply(directory: Path) -> None:
        for change in changes:
            change(directory)

    return apply


def with_prediction_layer(tensors: Tensors, *, copies: bool = False) -> None:
    """Layer 3, as layer 2 is."""
    for name in list(tensors):
        if name.startswith(f"{LAYER}2."):
            tensors[name.replace(".2.", ".3.", 1)] = tensors[name].clone()
    for name in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"{LAYER}3.{name}.weight"] = torch.ones(48)
    tensors[f"{LAYER}3.eh_proj.weight"] = torch.randn(48, 96) * 0.1
    if copies:
        tensors[f"{LAYER}3.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"{LAYER}3.shared_head.head.weight"] = tensors[HEAD].clone()


def with_other_copies(tensors: Tensors) -> None:
    with_prediction_layer(tensors, copies=True)
    tensors[f"{LAYER}3.shared_head.head.weight"][-1] += 1


def without_its_indexer(tensors: Tensors) -> None:
    with_prediction_layer(tensors)
    for name in list(tensors):
        if name.startswith(f"{LAYER}3.self_attn.indexer."):
            del tensors[name]


def with_shared_indexers(tensors: Tensors) -> None:
    for name in list(tensors):
        if name.startswith(f"{LAYER}0.self_attn.indexer."):
            tensors[name.replace(".0.", ".1.", 1)] = tensors[name].clone()


def indexed(*left_out: str) -> Change:
    """A shard with an index that does not name these."""

    def apply(directory: Path) -> None:
        tensors = load_file(directory / SINGLE_FILE)
        (directory / SINGLE_FILE).rename(directory / SHARD)
        weight_map = {name: SHARD for name in tensors if name not in left_out}
        (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return apply


def prediction_file(directory: Path) -> None:
    """The prediction layer in a file of its own, which the index does not name."""
    tensors = load_file(directory / SINGLE_FILE)
    stored = set(tensors)
    with_prediction_layer(tensors)
    save_file({n: t for n, t in tensors.items() if n not in stored}, directory / "mtp.safetensors")
    indexed()(directory)


def other_file(name: str, tensor: str) -> Change:
    return lambda directory: save_file({tensor: torch.zeros(2)}, directory / name)


def edit_name(name: str, other: str) -> Change:
    return lambda directory: (directory / name).rename(directory / other) and None


def consolidated(directory: Path) -> None:
    shutil.copyfile(directory / SINGLE_FILE, directory / "consolidated.safetensors")


# What is done to a sound checkpoint, and what a notice says; "" for none.
LOADS: dict[str, tuple[Change, str]] = {
    "nothing": (lambda _: None, ""),
    "a tensor that the index leaves out": (
        indexed("model.norm.weight"), "leaves out .* 1 tensor.*model.norm.weight"),
    "an adapter beside a single file": (
        other_file("adapter_model.safetensors", "base.lora"), "alone: adapter_model.*base.lora"),
    "another copy beside a single file": (consolidated, "left alone: consolidated.safetensors: 77"),
    "a pointer beside a single file": (
        written("x.safetensors", POINTER), "x.safetensors: a Git LFS"),
    "an adapter beside an index": (
        all_of(indexed(), other_file("adapter_model.safetensors", "base.lora")),
        "beside it and left alone: adapter_model"),
    "an index beside a single file": (
        written(INDEX_FILE, '{"weight_map": {"x": "model-00001-of-00009.safetensors"}}'),
        "index.json: left alone, as transformers reads model.safetensors"),
    "an index that is not wanted and its shards": (
        all_of(consolidated, indexed(), lambda d: shutil.move(
            d / "consolidated.safetensors", d / SINGLE_FILE)),
        f"beside it and left alone: {SHARD}"),
    "a file that the config names": (
        all_of(consolidated, edit(lambda t: t["model.norm.weight"].neg_()),
               configured(transformers_weights="consolidated.safetensors")),
        "consolidated.safetensors: beside it and left alone: model.safetensors"),
    "an index that the config names": (
        all_of(consolidated, indexed(), edit_name(INDEX_FILE, "my.safetensors.index.json"),
               other_file(SINGLE_FILE, "surplus"),
               configured(transformers_weights="my.safetensors.index.json")),
        "my.safetensors.index.json: beside it and left alone"),
    "prediction layer": (
        all_of(edit(with_prediction_layer), configured(num_nextn_predict_layers=1)), ""),
    "prediction layer, no key": (edit(with_prediction_layer), "are stored, which config.json does"),
    "prediction layer, null": (
        all_of(edit(with_prediction_layer), configured(num_nextn_predict_layers=None)),
        "1 prediction layer.s. are stored"),
    "prediction layer with copies": (
        all_of(edit(lambda t: with_prediction_layer(t, copies=True)),
               configured(num_nextn_predict_layers=1)),
        "not used: the prediction layer's own embedding and head.* 2 tensor"),
    "prediction layer with a head of its own": (
        all_of(edit(with_other_copies), configured(num_nextn_predict_layers=1)),
        "shared_head.head.weight: other values than lm_head.weight"),
    "prediction layer without its indexer": (
        all_of(edit(without_its_indexer), configured(num_nextn_predict_layers=1)),
        "not used: a prediction layer without an indexer"),
    "prediction layer in another file": (
        all_of(prediction_file, configured(num_nextn_predict_layers=1)),
        "mtp.safetensors: not named by model.safetensors.index.json; read"),
    "prediction layer that no file holds": (
        configured(num_nextn_predict_layers=1), "no file holds the 1 prediction layer"),
    "indexers of shared layers": (edit(with_shared_indexers), "not used: indexers of layers that"),
    "frequencies": (added(f"{LAYER}0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
                    "not used: rotary frequencies.* 1 tensor"),
    "scale of a whole head": (
        added("lm_head.weight_scale", torch.ones(1)), "used: scales of a head"),
    "scales of caches": (
        added(f"{LAYER}0.self_attn.k_scale", torch.ones(1)), "used: scales of cac"),
    "scales of outputs": (
        added(f"{LAYER}0.self_attn.kv_b_proj.output_scale", torch.ones(1)), "used: scales of cac"),
    "integer buffers": (
        added("model.position_ids", torch.zeros(3, dtype=torch.int64)), "not used: int64 buffers"),
    "an empty generation_config": (written("generation_config.json", ""), ""),
    "a broken generation_config": (written("generation_config.json", "{"), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", LOADS)
def test_what_lies_beside_a_model(
    directory: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    change, notice = LOADS[case]
    change(directory)
    with caplog.at_level(logging.WARNING, "glm_trt"):
        Checkpoint.open(directory)
    notices = [record.getMessage() for record in caplog.records if "glm_trt" in record.name]
    assert len(notices) == bool(notice) or (notice and len(notices) == 2), notices
    assert not notice or any(re.search(notice, said) for said in notices), notices
    assert relative(ours(directory), theirs(directory)) < TOLERANCE


REFUSED: dict[str, tuple[Change, str]] = {
    "weights": (written(SINGLE_FILE, POINTER), f"{SINGLE_FILE}: a Git LFS pointer"),
    "index": (all_of(indexed(), written(INDEX_FILE, POINTER)), f"{INDEX_FILE}: a Git LFS pointer"),
    "config": (written("config.json", POINTER), "config.json: a Git LFS pointer"),
    "byte-order mark": (marked("config.json"), "config.json: begins with the byte-order mark"),
    "byte-order mark of the index": (
        all_of(indexed(), marked(INDEX_FILE)), f"{INDEX_FILE}: begins with the byte-order mark"),
    "UTF-16": (written("config.json", "{}".encode("utf-16")), "byte-order mark of UTF-16"),
    "empty": (written("config.json", ""), "config.json: empty"),
    "deep": (written("config.json", "[" * 100_000), "config.json: not readable as JSON"),
    "a file elsewhere": (
        configured(transformers_weights="../x.safetensors"), "transformers_weights: expected a"),
    "a file that is none": (configured(transformers_weights="x.bin"), "transformers_weights: "),
    "unknown tensor": (added("surplus", torch.zeros(1)), "not expected by config.json: .*surplus"),
    "names without their beginning": (
        edit(lambda t: [t.update({n.removeprefix("model."): t.pop(n)}) for n in list(t)]),
        "missing .*; found embed_tokens.weight: names without model"),
    "integers": (added("model.norm.weight", torch.ones(48, dtype=torch.int64)), "found int64"),
    "FP8 without scales": (
        edit(lambda t: t.update({HEAD: t[HEAD].to(torch.float8_e4m3fn)})), "found float8_e4m3fn"),
    "more layers than the config has": (
        configured(num_hidden_layers=2, layer_types=None, mlp_layer_types=None,
                   indexer_types=["full", "shared"]), f"not expected by config.json: .*{LAYER}2."),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(directory: Path, case: str) -> None:
    change, message = REFUSED[case]
    change(directory)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        Checkpoint.open(directory)


@pytest.mark.parametrize(
    ("content", "expected", "notice"),
    [
        ("", (0,), "generation_config.json: not read: empty; the end tokens are those of"),
        ("{", (0,), "not read: expected a JSON object"),
        ("[]", (0,), "not read: expected a JSON object"),
        ("\ufeff{}", (0,), "not read: begins with the byte-order mark"),
        ("{}", (0,), ""),
        ('{"eos_token_id": [1, 154820, -1]}', (1,), "eos_token_id: [154820, -1]: not below"),
    ],
)
def test_end_tokens_of_a_broken_file(
    directory: Path, caplog: pytest.LogCaptureFixture, content: str, expected: object, notice: str
) -> None:
    written("generation_config.json", content)(directory)
    with caplog.at_level(logging.WARNING, "glm_trt"):
        assert Checkpoint.open(directory).eos_token_ids() == expected
    assert [notice in record.getMessage() for record in caplog.records] == [True] * bool(notice)


def test_a_prediction_layer_of_another_file_is_exported(directory: Path, tmp_path: Path) -> None:
    """Neither config nor index speak of it; the bundle has it, with that many in its config."""
    prediction_file(directory)
    checkpoint = Checkpoint.open(directory)
    export_checkpoint(directory, tmp_path / "b", ExportOptions(("float32",), 64))
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.config.num_nextn_predict_layers == 1
    assert [block.name for block in bundle.prediction_blocks] == ["mtp.0", "mtp.0.head"]
    expected = layer_bindings(checkpoint.config, checkpoint, 3)
    assert list(bundle.prediction_blocks[0].bindings) == expected
    # Validation finds it by itself, and nothing else besides the index.
    name = f"{LAYER}3.eh_proj.weight"
    other_file("x.safetensors", "model.norm.weight")(directory)
    other_file("y.safetensors", "base.lora")(directory)
    published = PublishedTensors(directory)
    assert torch.equal(published.view(name), as_torch(checkpoint.tensor(name)))
    assert published.view("model.norm.weight").any() and "base.lora" not in published


def test_validation_reads_the_files_that_the_config_names(directory: Path) -> None:
    consolidated(directory)
    edit(lambda tensors: tensors["model.norm.weight"].neg_())(directory)
    for named, sign in ((None, -1), ("consolidated.safetensors", 1)):
        configured(**({"transformers_weights": named} if named else {}))(directory)
        found = PublishedTensors(directory).view("model.norm.weight")
        assert torch.equal(found, as_torch(Checkpoint.open(directory).tensor("model.norm.weight")))
        assert found.mean() * sign > 0


def test_a_dtype_that_nobody_says(directory: Path) -> None:
    """The embedding's; of float64, which no block takes, float32."""
    for stored, expected in ((torch.float64, "float32"), (torch.float16, "float16")):
        added("model.embed_tokens.weight", torch.zeros(97, 48, dtype=stored))(directory)
        configured(dtype=None)(directory)
        assert Checkpoint.open(directory).dtype == expected


def test_a_plan_counts_the_files_of_the_model(directory: Path) -> None:
    prediction_file(directory)
    consolidated_size = (directory / SHARD).stat().st_size
    shutil.copyfile(directory / SHARD, directory / "consolidated.safetensors")
    source = find_source(directory)
    assert source.files == 2
    mtp = (directory / "mtp.safetensors").stat().st_size
    assert source.stored_bytes == consolidated_size + mtp
    (directory / SHARD).unlink()  # not there yet
    assert find_source(directory).files == 2


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"model.layers.9.x": 1}', b"no JSON"])
def test_validation_passes_over_files_of_something_else(directory: Path, header: bytes) -> None:
    beside = directory / "other.safetensors"
    beside.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "model.norm.weight" in PublishedTensors(directory)
    Checkpoint.open(directory)
