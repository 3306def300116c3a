"""`glm-trt plan`: the table, the JSON, the chart, errors."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glm_trt.cli import main
from glm_trt.model.checkpoint.presets import preset_config

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"
HAVE_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(preset_config("glm-5.1", "full")))
    return str(path)


@pytest.mark.parametrize("width", [110, 80])
def test_table(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["plan", config]) == 0
    out = capsys.readouterr().out
    for text in ("743,911,218,432", "753,864,139,008", "109,824 B a token", "746,130,054,912",
                 "fp8 at 195,000 tokens, batch 1: 4 × B300",
                 "cannot do this yet: a model split over 4 devices", "not tried: engines for sm1",
                 "5 engines a target"):  # fmt: skip
        assert text in out
    lines = out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Parameters"))
    assert len({len(line) for line in lines[first + 1 : first + 5]}) == 1  # columns are aligned
    assert max(map(len, lines[1:])) <= width
    titles = [line for line in lines if line.startswith("GPUs needed")]
    assert len(titles) == (
        1 if width == 110 else 3
    )  # a table for each precision where it is narrow
    rows = [" ".join(line.split()) for line in lines if line.startswith("  h200 ")]
    counts = ["16 16 16", "8 8 8", "4* 4* 8*"]
    assert rows == [f"h200 141 GB {x}" for x in ([" ".join(counts)] if width == 110 else counts)]


def test_one_gpu_that_is_too_small(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", config, "--gpu", "rtx-4090", "--precision", "bf16", "--context", "5"]
    assert main(arguments) == 0
    assert "bf16 at 5 tokens, batch 1: none of these GPUs" in capsys.readouterr().out


def test_json(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpu", "h200", "b200", "--context", "4096", "--batch", "8", "--precision", "fp8"]
    assert main(["plan", config, *arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["format"], plan["format_version"]) == ("glm-trt plan", 1)
    assert plan["options"] == {"contexts": [4096], "batch": 8, "mtp": False}
    assert [gpu["name"] for gpu in plan["gpus"]] == ["h200", "b200"]
    documented = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    for field in plan:
        assert f"`{field}`" in documented


def test_checkpoint_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(TINY), "--gpu", "rtx-4090"]) == 0
    assert "in 1 safetensors file(s), bf16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{none}"], "expected a checkpoint directory, a config.json, or glm-5.1"),
        (["{empty}"], "config.json: not found"),
        (["{damaged}"], "kv_lora_rank: expected an integer, found None"),
        (["{config}", "--gpu", "h300"], "--gpu: expected one of"),
        (["{config}", "--context", "-5"], "--context: expected 1 to 202,752"),
        (["{config}", "--context", "300000"], "--context: expected 1 to 202,752"),
        (["{config}", "--batch", "0"], "--batch: expected at least 1"),
        (["{config}", "--chart", "a.pdf"], "--chart: expected a name ending in .svg or .png"),
    ],
)
def test_errors(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    damaged = preset_config("glm-5.1", "full")
    damaged["kv_lora_rank"] = None
    (tmp_path / "damaged.json").write_text(json.dumps(damaged))
    (tmp_path / "empty").mkdir()
    places = {"none": str(tmp_path / "none"), "config": config, "empty": str(tmp_path / "empty"),
              "damaged": str(tmp_path / "damaged.json")}  # fmt: skip
    assert main(["plan", *(argument.format(**places) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_missing_matplotlib(
    config: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plan", config, "--chart", str(tmp_path / "a.svg")]) == 3
    assert "pip install 'glm-trt[charts]'" in capsys.readouterr().err


@pytest.mark.skipif(not HAVE_MATPLOTLIB, reason="charts are drawn with matplotlib")
@pytest.mark.parametrize(("name", "magic"), [("a.svg", b"<?xml"), ("a.png", b"\x89PNG")])
def test_chart(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, magic: bytes
) -> None:
    chart = tmp_path / name
    assert main(["plan", config, "--precision", "fp8", "--chart", str(chart), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert chart.read_bytes().startswith(magic)


@pytest.mark.skipif(not HAVE_MATPLOTLIB, reason="charts are drawn with matplotlib")
def test_chart_of_nothing(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpu", "rtx-4090", "--precision", "bf16", "--chart", str(tmp_path / "a.svg")]
    assert main(["plan", config, *arguments]) == 2
    assert "nothing to draw" in capsys.readouterr().err


def test_starts_fast(config: str) -> None:
    """Nothing that takes seconds to load is loaded."""
    script = (
        "import sys; from glm_trt.cli import main; main(sys.argv[1:]); "
        "print({'torch', 'onnx', 'numpy', 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, "plan", config, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stderr.strip() == "set()"
