"""The command: results on stdout, errors in one line on stderr, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from glm_trt.cli import main

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"


def test_run_prints_prompt_and_continuation(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tiny_bundle), "--prompt", "def fibonacci(n):"]) == 0
    assert capsys.readouterr().out.startswith('def fibonacci(n):\n    """')
    assert main(["run", str(tiny_bundle), "--input-ids", "1,2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["input_ids"] == [1, 2]
    assert len(result["token_ids"]) == 32


def test_inspect(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_bundle)]) == 0
    assert "sparse_indexed" in capsys.readouterr().out
    assert main(["inspect", str(tiny_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "glm-trt bundle"
    altered = shutil.copytree(tiny_bundle, tmp_path / "altered")
    path = next(altered.rglob("*.onnx"))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert main(["inspect", str(altered)]) == 2
    assert f"{path}: altered" in capsys.readouterr().err


def test_an_interrupted_command_is_130(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("glm_trt.load", interrupted)
    assert main(["run", str(tiny_bundle), "--prompt", "x"]) == 130
    assert capsys.readouterr().err == "glm-trt run: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "{none}", "--prompt", "x"], 2, "not a finished bundle"),
        (["run", "{bundle}", "--input-ids", "1,5000"], 2, "5000"),
        (["run", "{bundle}", "--input-ids", "1", "--temperature", "-1"], 2, "--temperature"),
        (["run", "{bundle}", "--input-ids", "1", "--max-new-tokens", "0"], 2, "--max-new-tokens"),
        (["run", "{bundle}", "--input-ids", "1", "--backend", "tensorrt"], 3, "tensorrt"),
        (["validate", "{bundle}", "--seed", "-1"], 2, "--seed"),
        (["validate", "{bundle}", "--longest", "0"], 2, "--longest"),
        (
            ["build", "{bundle}", "--no-plugins", "--embed-plugins", "--target", "x"],
            2,
            "--embed-plugins",
        ),
        (["export", "{none}", "-o", "{none}2"], 2, "not a directory"),
        (["export", "{tiny}", "-o", "{none}", "--max-seq-len", "9999"], 2, "--max-seq-len"),
    ],
)
def test_errors(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    places = {"none": str(tmp_path / "none"), "bundle": str(tiny_bundle), "tiny": str(TINY)}
    assert main([argument.format(**places) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_wrong_usage_is_2() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run"])


def test_checkpoint_without_tokenizer_takes_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "checkpoint"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, source)
    bundle = str(tmp_path / "bundle")
    assert main(["export", str(source), "-o", bundle, "--dtype", "float32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] is True
    assert main(["run", bundle, "--prompt", "x"]) == 2
    assert "--input-ids" in capsys.readouterr().err
    assert main(["run", bundle, "--input-ids", "1,2", "--max-new-tokens", "3"]) == 0
    assert len(capsys.readouterr().out.split(",")) == 3
