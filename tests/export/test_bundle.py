"""Bundles: whole or not there, resumed after a kill, and refused when altered."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import ml_dtypes
import numpy as np
import pytest
import torch
from manifests import edit_manifest
from safetensors.torch import load_file, save_file

import glm_trt
from glm_trt.export import export_checkpoint as exporting
from glm_trt.export import materialize, trace
from glm_trt.export.bundle.read import Bundle, read_manifest
from glm_trt.export.bundle.write import write_manifest
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model import files
from glm_trt.model.checkpoint import bindings
from glm_trt.model.errors import BundleError, CheckpointError

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"
FLOAT32 = ExportOptions(dtypes=("float32",))


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint"))


@pytest.fixture
def no_tracing(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> list[str]:
    """Graphs out of a finished bundle instead of a trace; the list says which were asked for."""
    import onnx

    asked: list[str] = []

    def stored(config: Any, kind: str, dtype: torch.dtype) -> onnx.ModelProto:
        asked.append(kind)
        return onnx.load(
            tiny_bundle / "graphs" / str(dtype).removeprefix("torch.") / f"{kind}.onnx"
        )

    monkeypatch.setattr(trace, "trace_block", stored)
    return asked


def test_every_byte_counts(bundle: Path) -> None:
    listed = [path for path in sorted(bundle.rglob("*")) if path.is_file()]
    assert len(listed) > 15
    generator = np.random.default_rng(0)
    for path in listed:
        original = path.read_bytes()
        for place in generator.integers(0, len(original), 3).tolist():
            changed = bytearray(original)
            changed[place] ^= 1 << int(generator.integers(8))
            path.write_bytes(changed)
            with pytest.raises(BundleError, match=path.name):
                glm_trt.load(bundle)
        path.write_bytes(original)
    glm_trt.load(bundle).close()


def test_missing_and_truncated_files(bundle: Path) -> None:
    weights = bundle / "weights" / "head.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"head\.safetensors: expected \d+ bytes, found"):
        Bundle.open(bundle)
    weights.unlink()
    with pytest.raises(BundleError, match=r"head\.safetensors: missing"):
        Bundle.open(bundle)
    (bundle / "manifest.json").unlink()
    with pytest.raises(BundleError, match="not a finished bundle"):
        Bundle.open(bundle)


def test_schema_is_checked_on_load(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    with pytest.raises(jsonschema.ValidationError, match="0 is less than"):
        write_manifest(bundle, replace(manifest, max_seq_len=0))
    assert read_manifest(bundle) == manifest
    # Sealed properly, wrong all the same.
    edit_manifest(bundle, lambda manifest: manifest["engines"].append({"kind": "head"}))
    with pytest.raises(BundleError, match=r"engines\[0\]: breaks the manifest's schema"):
        Bundle.open(bundle)


def test_an_older_format_is_to_be_exported_again(bundle: Path, no_tracing: list[str]) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 6', '"format_version": 5'))
    with pytest.raises(BundleError, match="expected 6, found 5; export again"):
        Bundle.open(bundle)
    assert export_checkpoint(TINY, bundle, FLOAT32)
    assert len(no_tracing) == 5
    Bundle.open(bundle)


@pytest.mark.usefixtures("no_tracing")
def test_scan_counts_all_shards(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit together, though not each: no weight is read, no content hashed."""
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(tensors)
    tensors[names[0]][0] = float("nan")
    for i in range(2):
        part = {name: tensors[name] for name in names[i::2]}
        save_file(part, checkpoint / f"{i}.safetensors")
    sizes = [path.stat().st_size for path in checkpoint.glob("*.safetensors")]
    output = checkpoint.parent / "out"
    monkeypatch.setattr(exporting, "SCAN_LIMIT_BYTES", sum(sizes))
    with pytest.raises(CheckpointError, match="finite"):
        export_checkpoint(checkpoint, output, FLOAT32)
    monkeypatch.setattr(exporting, "SCAN_LIMIT_BYTES", sum(sizes) - 1)
    assert export_checkpoint(checkpoint, output, FLOAT32)
    assert [x.sha256 for x in read_manifest(output).checkpoint.files] == [None, None]


def test_materialized_weights_are_the_checkpoints(tiny_bundle: Path) -> None:
    from safetensors import safe_open

    path = tiny_bundle / "weights" / "layer.1.safetensors"
    assert int.from_bytes(path.read_bytes()[:8], "little") % 64 == 56  # data at a multiple of 64
    with safe_open(path, "pt") as file:
        stacked = file.get_tensor("layer.1.mlp.experts.gate_up_proj")
        bias = file.get_tensor("layer.1.mlp.gate.e_score_correction_bias")
    source = load_file(TINY / "model.safetensors")
    for expert in range(16):
        prefix = f"model.layers.1.mlp.experts.{expert}."
        assert torch.equal(stacked[expert, :64], source[prefix + "gate_proj.weight"])
        assert torch.equal(stacked[expert, 64:], source[prefix + "up_proj.weight"])
    assert bias.dtype == torch.float32


def test_second_export_does_nothing(
    checkpoint: Path, tmp_path: Path, no_tracing: list[str]
) -> None:
    output = tmp_path / "bundle"
    assert export_checkpoint(checkpoint, output, FLOAT32)
    assert len(no_tracing) == 5
    assert not export_checkpoint(checkpoint, output, FLOAT32)
    assert len(no_tracing) == 5
    (output / "bindings.json").write_text("{}")  # damaged: made again
    assert export_checkpoint(checkpoint, output, FLOAT32)
    Bundle.open(output)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_changed_shard_is_named(checkpoint: Path, tmp_path: Path, no_tracing: list[str]) -> None:
    export_checkpoint(checkpoint, tmp_path / "bundle", FLOAT32)
    shard = checkpoint / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.safetensors: altered"):
        Bundle.open(tmp_path / "bundle")


@pytest.mark.usefixtures("no_tracing")
@pytest.mark.parametrize("change", ["header", "size", "missing", "weights"])
def test_changed_shard_of_a_checkpoint_too_large_to_hash_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(exporting, "SCAN_LIMIT_BYTES", 0)
    export_checkpoint(checkpoint, tmp_path / "bundle", FLOAT32)
    Bundle.open(tmp_path / "bundle").weights.tensor("model.norm.weight")
    shard = checkpoint / "model.safetensors"
    if change == "header":
        tensors = load_file(shard)
        save_file(tensors, shard, metadata={"format": "np"})
    elif change == "weights":
        save_file({k: v + 1 for k, v in load_file(shard).items()}, shard, metadata={"format": "pt"})
    elif change == "size":
        with shard.open("ab") as file:
            file.write(b"\0")
    else:
        shard.unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors: (another|expected|missing|other)"):
        Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(checkpoint: Path, tmp_path: Path, dtype: str, value: float) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    if dtype == "float32":
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    tensors["model.layers.3.self_attn.o_proj.weight"][7, 9] = value
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.3\.self_attn\.o_proj.*\(7, 9\) is"):
        export_checkpoint(checkpoint, tmp_path / "bundle", FLOAT32)
    assert not (tmp_path / "bundle").exists()


def test_full_disk_leaves_no_bundle_and_resumes(
    checkpoint: Path, tmp_path: Path, no_tracing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, real, calls = tmp_path / "bundle", os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(BundleError, match="no space left"):
        export_checkpoint(checkpoint, output, FLOAT32)
    assert not output.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(files.os, "fsync", real)
    before = len(no_tracing)
    assert export_checkpoint(checkpoint, output, FLOAT32)
    assert len(no_tracing) - before < 5  # finished graphs were kept
    Bundle.open(output)


def test_one_export_at_a_time(checkpoint: Path, tmp_path: Path) -> None:
    with (
        files.locked(tmp_path / ".bundle.lock", "export to this place"),
        pytest.raises(BundleError, match="another export to this place is running"),
    ):
        export_checkpoint(checkpoint, tmp_path / "bundle", FLOAT32)
    assert not (tmp_path / ".bundle.lock").exists()


def test_materialize_says_first_how_much_room_it_needs(
    checkpoint: Path, tmp_path: Path, no_tracing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1_000_000))
    with pytest.raises(BundleError, match=r"needs 1[0-9]\.\d MB, only 1\.0 MB are free"):
        export_checkpoint(checkpoint, tmp_path / "bundle", ExportOptions(materialize=True))
    assert no_tracing == []


def test_kill_and_resume(checkpoint: Path, tmp_path: Path) -> None:
    output, partial = tmp_path / "bundle", tmp_path / ".bundle.partial"
    command = [sys.executable, "-m", "glm_trt.cli", "export", str(checkpoint), "-o", str(output)]
    process = subprocess.Popen([*command, "--dtype", "float32"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (partial / "graphs/float32/dense_indexed.onnx").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = (partial / "graphs/float32/embedding.onnx").stat().st_mtime_ns
    for directory in (output, partial):
        with pytest.raises(BundleError, match="not a finished bundle"):
            Bundle.open(directory)
    assert export_checkpoint(checkpoint, output, FLOAT32)
    assert (output / "graphs/float32/embedding.onnx").stat().st_mtime_ns == kept
    assert not partial.exists()
    Bundle.open(output)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("no_tracing")
def test_kill_while_materialising_and_resume(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks whose weights are whole are not written again; the half of one is."""
    output, weights = tmp_path / "bundle", tmp_path / ".bundle.partial" / "weights"
    with monkeypatch.context() as patch:  # graphs alone, which the command below goes on from
        patch.setattr(materialize, "_pieces", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_checkpoint(checkpoint, output, ExportOptions(("float32",), materialize=True))
    command = [sys.executable, "-m", "glm_trt.cli", "export", str(checkpoint), "-o", str(output)]
    process = subprocess.Popen([*command, "--dtype", "float32", "--materialize"],
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:  # stopped before it is killed, so that the kill is not too late
        if "layer.2" in line:
            process.send_signal(signal.SIGSTOP)
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    names = sorted(path.name for path in weights.glob("[!.]*"))
    assert {"embedding.safetensors", "layer.0.safetensors"} <= set(names)
    assert "head.safetensors" not in names
    before = {name: (weights / name).stat().st_mtime_ns for name in names}
    (weights / ".layer.3.safetensors.tmp").write_bytes(b"half")
    assert export_checkpoint(checkpoint, output, ExportOptions(("float32",), materialize=True))
    after = {name: (output / "weights" / name).stat().st_mtime_ns for name in names}
    assert after == before
    Bundle.open(output)
    assert not list(tmp_path.rglob("*.tmp")) and not weights.parent.exists()


@pytest.mark.usefixtures("no_tracing")
def test_materialising_holds_one_tensor_at_a_time(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of stacked experts one, not the stack: what is written at once is an expert's tensor."""
    sizes = []
    pieces = materialize._pieces

    def counted(*arguments: Any) -> Any:
        for array in pieces(*arguments):
            sizes.append(array.nbytes)
            yield array

    monkeypatch.setattr(materialize, "_pieces", counted)
    monkeypatch.setattr(bindings, "_stack_experts", None)
    lines: list[str] = []
    options = ExportOptions(("float32",), materialize=True)
    export_checkpoint(checkpoint, tmp_path / "bundle", options, lambda text, *_: lines.append(text))
    assert max(sizes) == 2048 * 256 * 2  # the embedding
    written = [line for line in lines if line.startswith("weights of")]
    bundle = Bundle.open(tmp_path / "bundle")
    assert len(written) == len(bundle.blocks) + len(bundle.prediction_blocks)
    assert all(re.fullmatch(r"weights of \S+, [\d.,]+ of 1\d\.\d MB", line) for line in written)


def test_output_that_is_no_bundle_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        export_checkpoint(checkpoint, other, FLOAT32)
    with pytest.raises(BundleError, match="lies in the checkpoint"):
        export_checkpoint(checkpoint, checkpoint, FLOAT32)
    assert (other / "thesis.txt").read_text() == "mine"


def test_graphs_do_not_grow_with_layers(
    checkpoint: Path, tmp_path: Path, no_tracing: list[str]
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    layers = {n: t for n, t in tensors.items() if n.startswith("model.layers.5.")}
    kept = {n: t for n, t in tensors.items() if not n.startswith("model.layers.6.")}
    for i in range(6, 24):
        kept |= {n.replace("layers.5", f"layers.{i}"): t.clone() for n, t in layers.items()}
    save_file(kept, checkpoint / "model.safetensors")
    for name, last in (("layer_types", "indexed_attention"), ("indexer_types", "full"),
                       ("mlp_layer_types", "sparse")):  # fmt: skip
        config[name] += [last] * 18
    (checkpoint / "config.json").write_text(
        json.dumps({**config, "num_hidden_layers": 24, "num_nextn_predict_layers": 0})
    )
    export_checkpoint(checkpoint, tmp_path / "bundle", FLOAT32)
    assert sorted(no_tracing) == ["dense_indexed", "embedding", "head", "sparse_indexed"]
    assert len(Bundle.open(tmp_path / "bundle").blocks) == 26


def test_bfloat16_is_not_widened_by_materializing(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert bundle.weights.tensor("head.norm.weight").dtype == ml_dtypes.bfloat16
