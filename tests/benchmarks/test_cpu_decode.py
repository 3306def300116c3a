"""The decode benchmark: it reports figures for equal tokens only, and the figures are right."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cpu_decode.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cpu_decode", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cpu_decode"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_names_the_first_difference(script: ModuleType) -> None:
    assert script.first_difference({"a": [1, 2, 3], "b": [1, 2, 3]}) is None
    found = script.first_difference({"a": [1, 2, 3], "b": [1, 2, 3], "c": [1, 5, 6]})
    assert found == "token 1: a chose 2, c chose 5"


def test_summary_takes_medians_and_the_faster_transformers(script: ModuleType) -> None:
    def run(prefill: float, decode: float) -> object:
        return script.Run(prefill, decode, [1] * 11)

    runs = [
        {"slow": run(4, 4), "fast": run(2, 2), script.OURS: run(1, seconds)}
        for seconds in (1, 0.5, 0.25)
    ]
    found = script.summary(runs, 8, 11)
    assert found["prefill"]["tokens_per_second"] == {"slow": 2, "fast": 4, script.OURS: 8}
    assert found["decode"]["faster_transformers"] == "fast"
    assert found["decode"]["tokens_per_second"][script.OURS] == 20
    assert (found["decode"]["ratio"], found["decode"]["ratio_range"]) == (4, [2, 8])


def test_reports_on_the_tiny_checkpoint(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(script, "WORK", tmp_path)
    arguments = ["--only", "tiny", "--rounds", "1", "--new-tokens", "4"]
    assert script.main([*arguments, "--json", str(tmp_path / "figures.json")]) == 0
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    assert figures["decode"]["ratio"] > 0
    assert "the same tokens on every side" in capsys.readouterr().out


def test_refuses_to_report_on_other_tokens(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(script, "WORK", tmp_path)
    monkeypatch.setattr(script.Onnxruntime, "run", lambda *_: script.Run(1, 1, [-1] * 4))
    with pytest.raises(SystemExit) as stop:
        script.main(["--only", "tiny", "--rounds", "1", "--new-tokens", "4"])
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert "token 0: transformers eager chose" in captured.err and "tok/s" not in captured.out
