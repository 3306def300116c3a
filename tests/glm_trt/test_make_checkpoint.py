"""`glm-trt make-checkpoint`: whole or not there, the same by seed, and exported and validated."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from glm_trt.cli import main
from glm_trt.export import export_checkpoint as exporting
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint import generate as g
from glm_trt.model.checkpoint.presets import PRESETS, preset_config
from glm_trt.model.checkpoint.read import INDEX_FILE, Checkpoint

KINDS = {
    "glm-5.1": ["dense_indexed", "sparse_indexed", "head", "mtp_sparse_indexed"],
    "glm-5.2": [
        "dense_indexed", "sparse_shared", "sparse_indexed", "head", "mtp_sparse_indexed",
    ],
    "glm-5.1-hybrid": ["dense_linear", "sparse_full", "sparse_linear", "head", "mtp_sparse_full"],
}  # fmt: skip
# A layer that shares a selection is proved by others (tests/model/test_published.py).
EACH = [pytest.param(x, marks=pytest.mark.slow) if x == "glm-5.2" else x for x in PRESETS]


@pytest.mark.parametrize("preset", EACH)
def test_tiny_is_exported_and_validated(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = str(tmp_path / "deep" / "c"), str(tmp_path / "b")
    assert main(["make-checkpoint", preset, "-o", checkpoint]) == 0
    assert main(["export", checkpoint, "-o", bundle, "--json"]) == 0
    capsys.readouterr()
    assert main(["validate", bundle, "--longest", "48", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [block["kind"] for block in report["blocks"][1:-1]] == KINDS[preset]
    assert main(["run", bundle, "--input-ids", "1,2,3", "--max-new-tokens", "4"]) == 0


@pytest.mark.parametrize("counts", [(78,), pytest.param((78, 39), marks=pytest.mark.slow)])
def test_full_size_in_fp8_is_exported_unread(
    counts: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every tensor of the real model: bounded memory, a graph a kind; as much for half of it."""
    peaks = {}
    for layers in counts:
        place, bundle = tmp_path / f"c{layers}", tmp_path / f"b{layers}"
        assert main(["make-checkpoint", "glm-5.1", "--scale", "full", "--precision", "fp8",
                     "--layers", str(layers), "-o", str(place), "--json"]) == 0  # fmt: skip
        written = json.loads(capsys.readouterr().out)
        assert written["disk_bytes"] < 50e6 < 100e9 < written["bytes"]
        script = f"""
from pathlib import Path
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
export_checkpoint(Path({str(place)!r}), Path({str(bundle)!r}), ExportOptions(("float32",)))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0])  # ru_maxrss would be this process's own, if that is larger
"""
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                                check=True, timeout=120)  # fmt: skip
        peaks[layers] = int(result.stdout) * 1024
        files = [path.stat().st_size for path in bundle.rglob("*") if path.is_file()]
        assert sum(files) < 5e6
        assert len(list(bundle.glob("graphs/float32/*"))) == 5
        blocks = Bundle.open(bundle)
        assert len(blocks.blocks) == layers + 2 and len(blocks.prediction_blocks) == 2
    assert peaks[78] < 2e9 and peaks[78] <= 1.2 * peaks[counts[-1]]


@pytest.mark.slow
def test_glm_5_2_in_full_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its config as published over files of holes: planned, exported, opened; 1M positions."""
    place, bundle = tmp_path / "c", tmp_path / "b"
    assert main(["make-checkpoint", "glm-5.2", "--scale", "full", "-o", str(place), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["disk_bytes"] < 50e6 < 1.4e12 < written["bytes"]
    assert json.loads((place / "config.json").read_text()) == preset_config("glm-5.2", "full")
    assert main(["plan", str(place), "--json"]) == 0
    parameters = json.loads(capsys.readouterr().out)["parameters"]
    assert parameters["components"]["indexer"] == 21 * 9_371_904
    assert main(["export", str(place), "-o", str(bundle)]) == 0
    opened = Bundle.open(bundle)
    assert opened.max_seq_len == 1 << 20
    assert [b.kind for b in opened.blocks].count("sparse_shared") == 57
    assert len(opened.blocks) == 80 and len(opened.prediction_blocks) == 2


def test_parts_of_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["make-checkpoint", "glm-5.1-hybrid", "-o", str(tmp_path / "c")]
    assert main([*base, "--kind", "sparse_indexed"]) == 2
    assert "kind: expected one of dense_linear" in capsys.readouterr().err
    assert main([*base, "--layers", "4"]) == 2
    assert "expected 1 … 3 layers, found 4" in capsys.readouterr().err
    assert main([*base, "--scale", "full", "--random"]) == 2
    assert "random weights need" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    assert main([*base, "--kind", "sparse_linear", "--without-mtp", "--precision", "nvfp4"]) == 0
    config = Checkpoint.open(tmp_path / "c").config
    assert config.num_hidden_layers == 1 and config.num_nextn_predict_layers == 0
    assert config.quantization.precision == "nvfp4"


def test_seed_decides_every_byte(tmp_path: Path) -> None:
    def made(name: str, seed: int) -> bytes:
        g.make_checkpoint(g.CheckpointOptions("glm-5.1-hybrid", seed=seed), tmp_path / name)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert made("a", 1) == made("b", 1) != made("c", 2)
    for tensor in load_file(tmp_path / "a" / "model.safetensors").values():
        assert np.isfinite(tensor.astype(np.float32)).all()


def test_block_takes_no_space_and_is_exported_unread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "c"
    assert main(["make-checkpoint", "glm-5.1-hybrid", "--scale", "block", "-o", str(place),
                 "--json"]) == 0  # fmt: skip
    written = json.loads(capsys.readouterr().out)
    assert written["bytes"] > 60e9 and written["disk_bytes"] < 1e6
    assert written["directory"] == str(place)
    files = sorted(place.glob("*.safetensors"))
    assert len(files) == written["files"] and files[0].name == "model-00001-of-00013.safetensors"
    assert max(path.stat().st_size for path in files) < 5.01e9
    index = json.loads((place / INDEX_FILE).read_text())
    assert len(index["weight_map"]) == written["tensors"]
    assert index["metadata"]["total_size"] < written["bytes"]
    checkpoint = Checkpoint.open(place)
    assert not checkpoint.tensor("model.layers.2.linear_attn.in_proj_qkvz.weight")[:3].any()

    def read(*_: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(exporting, "_check_finite", read)
    entries = exporting.shard_entries(checkpoint.files, place)
    assert {entry.sha256 for entry in entries} == {None}


def test_what_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c").mkdir()
    g.make_checkpoint(
        g.CheckpointOptions("glm-5.1"), tmp_path / "c"
    )  # an empty directory may be filled
    before = sorted(tmp_path.rglob("*"))
    assert main(["make-checkpoint", "glm-5.1", "-o", str(tmp_path / "c")]) == 2
    assert "exists and is not an empty directory" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["make-checkpoint", "glm-5.1", "-o", str(tmp_path / "file")]) == 2
    assert main(["make-checkpoint", "glm-5.1", "-o", str(tmp_path / "d"), "--seed", "-1"]) == 2
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])
    with pytest.raises(SystemExit, match="2"):
        main(["make-checkpoint", "glm-4", "-o", str(tmp_path / "d")])


def test_nothing_is_left_of_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(g, "_random", full)
    assert main(["make-checkpoint", "glm-5.1", "-o", str(tmp_path / "c")]) == 2
    assert "no space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
