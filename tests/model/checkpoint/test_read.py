"""The checkpoint reader: values equal to safetensors' own, and every fault named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glm_trt.model.checkpoint.read import INDEX_FILE, SINGLE_FILE, Checkpoint
from glm_trt.model.checkpoint.weights import as_torch
from glm_trt.model.errors import CheckpointError

TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"
NAME = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    return tmp_path


def shard(directory: Path, with_index: bool = True) -> dict[str, str]:
    """Split the single file in two; returns the weight map."""
    tensors = load_file(directory / SINGLE_FILE)
    (directory / SINGLE_FILE).unlink()
    names, weight_map = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map.update(dict.fromkeys(part, file))
    if with_index:
        write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("form", ["single", "indexed", "without index"])
def test_values_equal_safetensors(directory: Path, form: str) -> None:
    with safe_open(TINY / SINGLE_FILE, "pt") as file:
        expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if form != "single":
        shard(directory, with_index=form == "indexed")
    checkpoint = Checkpoint.open(directory)
    assert set(checkpoint.names) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(as_torch(checkpoint.tensor(name)), tensor), name
    assert checkpoint.dtype == "bfloat16"
    assert checkpoint.has_mtp


def test_end_tokens_are_all_those_of_the_generation_config(directory: Path) -> None:
    path = directory / "generation_config.json"
    for ids, expected in (([3, 5], (3, 5)), (7, (7,)), (None, (0,))):
        path.write_text(json.dumps({"eos_token_id": ids}))
        assert Checkpoint.open(directory).eos_token_ids() == expected


def test_nothing_is_copied(directory: Path) -> None:
    tensor = Checkpoint.open(directory).tensor(NAME)
    assert not tensor.flags.writeable
    assert not tensor.flags.owndata


def test_dropped_mtp_layer_is_accepted(directory: Path) -> None:
    tensors = load_file(directory / SINGLE_FILE)
    kept = {name: t for name, t in tensors.items() if not name.startswith("model.layers.6.")}
    save_file(kept, directory / SINGLE_FILE)
    assert not Checkpoint.open(directory).has_mtp


def edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / SINGLE_FILE)
        change(tensors)
        save_file(tensors, directory / SINGLE_FILE)

    return apply


def truncate(directory: Path) -> None:
    path = directory / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-10])


def lengthen(directory: Path) -> None:
    path = directory / SINGLE_FILE
    path.write_bytes(path.read_bytes() + b"\0")


def huge_header(directory: Path) -> None:
    path = directory / SINGLE_FILE
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def index_outside(directory: Path) -> None:
    write_index(directory, shard(directory) | {NAME: "../elsewhere/model.safetensors"})


def index_to_missing_shard(directory: Path) -> None:
    write_index(directory, shard(directory) | {NAME: "model-00003-of-00002.safetensors"})


def index_to_another_shard(directory: Path) -> None:
    weight_map = shard(directory)
    other = next(file for file in weight_map.values() if file != weight_map[NAME])
    write_index(directory, weight_map | {NAME: other})


def duplicated(directory: Path) -> None:
    shard(directory, with_index=False)
    save_file({NAME: torch.zeros(256, 256, dtype=torch.bfloat16)}, directory / "x.safetensors")


FAULTS = {
    "missing": (edit(lambda t: t.pop(NAME)), NAME),
    "extra": (edit(lambda t: t.update(surplus=torch.zeros(1))), "surplus"),
    "shape": (edit(lambda t: t.update({NAME: t[NAME][1:].contiguous()})), r"\(256, 256\)"),
    "dtype": (edit(lambda t: t.update({NAME: t[NAME].byte()})), "expected dtype float32 or"),
    "integers": (edit(lambda t: t.update({NAME: t[NAME].int()})), "found int32"),
    "partial MTP": (edit(lambda t: t.pop("model.layers.6.enorm.weight")), "enorm"),
    "expert": (edit(lambda t: t.pop("model.layers.2.mlp.experts.3.up_proj.weight")), "experts.3"),
    "truncated": (truncate, "truncated"),
    "lengthened": (lengthen, "expected .* bytes"),
    "huge header": (huge_header, "header of"),
    "outside": (index_outside, r"o_proj.*\.\./elsewhere"),
    "missing shard": (index_to_missing_shard, "model-00003-of-00002.safetensors does not exist"),
    "another shard": (index_to_another_shard, f"{NAME}: not in .*, where the index puts it"),
    "duplicated": (duplicated, "duplicated in model-0000.-of-00002.safetensors and x.safetensors"),
    "empty": (lambda d: (d / SINGLE_FILE).unlink(), "no .safetensors file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(directory: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    change(directory)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(directory)


def test_name_twice_in_one_header(directory: Path) -> None:
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{entry},{entry}}}".encode()
    data = len(header).to_bytes(8, "little") + header + np.zeros(1, np.float32).tobytes()
    (directory / SINGLE_FILE).write_bytes(data)
    with pytest.raises(CheckpointError, match="a: listed twice"):
        Checkpoint.open(directory)


@pytest.mark.parametrize("shape", ["x", 1, None, {"0": 1}, [1.0], [-1], [True], ["1"]])
def test_a_shape_that_is_none(directory: Path, shape: object) -> None:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}
    refused(directory, entry)


@pytest.mark.parametrize(
    "offsets", ["ab", 4, None, {"0": 4}, [4], [0, 4, 8], [], [0, 4.0], [-4, 0]]
)
def test_offsets_that_are_none(directory: Path, offsets: object) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": offsets}
    refused(directory, entry)


def refused(directory: Path, entry: object) -> None:
    """By the tensor's name, and by safetensors too."""
    header = json.dumps({"a": entry}).encode()
    path = directory / SINGLE_FILE
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="a: "):
        Checkpoint.open(directory)
    with pytest.raises(Exception), safe_open(path, "pt"):  # noqa: B017 — its own errors
        pass
