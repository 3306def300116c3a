"""Saved runs: judged as they were live, compared with one another, refused where not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import FAULTS, Faulty

from glm_trt.cli import main
from glm_trt.validate.judging.choices import CHOSEN_BY
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.saving import recording
from glm_trt.validate.saving.diff import diff_runs
from glm_trt.validate.saving.recording import Recording, RecordingError
from glm_trt.validate.validation import ValidationOptions, validate_bundle

pytestmark = pytest.mark.usefixtures("shared_walks")
Made = Callable[[str], tuple[Path, Path]]
SHORT = CaseOptions(longest=48)


@pytest.fixture(scope="module")
def runs(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Where the runs "float32", "bfloat16" and "faulty" are saved, and their live reports."""
    place = tmp_path_factory.mktemp("runs")
    checkpoint, bundle = made("plain")
    fault = next(fault for fault in FAULTS if fault.name == "larger_epsilon")
    copy = Faulty(bundle, place / "bundle")
    fault.edit(copy)
    copy.seal()
    live = {}
    for name, of, backend, dtype in (
        ("float32", bundle, "onnxruntime", "float32"),
        ("bfloat16", bundle, "graph", "bfloat16"),
        ("faulty", place / "bundle", "onnxruntime", "float32"),
    ):
        options = ValidationOptions(
            backend, dtype, checkpoint, cases=SHORT, save=place / name
        )  # fmt: skip
        live[name] = validate_bundle(of, options)
    return place, live


@pytest.mark.parametrize("first", ["float32", "bfloat16", "faulty"])
@pytest.mark.parametrize("second", ["float32", "bfloat16", "faulty"])
def test_the_same_verdict_as_live(
    runs: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], first: str, second: str
) -> None:
    place, live = runs
    code = main(["diff", str(place / first), str(place / second), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == int("faulty" in (first, second))
    compared = report.pop("compared")
    expected = json.loads(json.dumps(live[second]))
    assert expected.pop("compared") is None
    assert report | {"ok": None} == expected | {"ok": None}
    assert compared["ok"] == live[first]["ok"]
    assert bool(compared["problems"]) == (first == "faulty")
    differences = [row["difference"] for row in compared["outputs"]]
    identical = [row["identical"] for row in compared["outputs"]]
    if first == second:
        assert not any(differences) and all(identical)
    else:
        assert max(differences) > 1e-3 and not all(identical)
    assert all(row["equal"] <= row["rows"] for row in compared["choices"])
    assert {row["output"] for row in compared["choices"]} == {*CHOSEN_BY, "logits"}


def test_report_and_summary(
    runs: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _ = runs
    arguments = [str(place / "float32"), str(place / "bfloat16"), "--report", str(tmp_path / "r")]
    assert main(["diff", *arguments]) == 0
    text = capsys.readouterr().out
    assert "graph in bfloat16: passed" in text and "compared with" in text
    assert "Beside onnxruntime in float32" in (tmp_path / "r" / "report.html").read_text()


def test_runs_of_other_cases_or_blocks_are_refused(
    runs: tuple[Path, dict[str, Any]], made: Made, tmp_path: Path
) -> None:
    place, _ = runs
    checkpoint, bundle = made("plain")
    seed = CaseOptions(longest=48, seed=1)
    options = ValidationOptions(checkpoint=checkpoint, cases=seed, save=tmp_path / "other")
    validate_bundle(bundle, options)
    with pytest.raises(RecordingError, match="case random 1 x 1: other ids"):
        diff_runs(place / "float32", tmp_path / "other")
    checkpoint, bundle = made("hybrid")
    options = ValidationOptions(checkpoint=checkpoint, cases=SHORT, save=tmp_path / "hybrid")
    validate_bundle(bundle, options)
    with pytest.raises(RecordingError, match="hybrid: checkpoint: expected"):
        diff_runs(place / "float32", tmp_path / "hybrid")
    # What a policy's rules may name is what the blocks have.
    for run in (Recording(place / "float32"), Recording(tmp_path / "hybrid")):
        for block, target in run.targets.items():
            outputs = [x for x in target.outputs if "." not in x and x != "graph"]  # no weight
            assert sorted(next(run.kept(block)).hashes) == sorted(outputs)


def test_what_is_not_a_whole_run_is_refused(
    runs: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _ = runs
    with pytest.raises(RecordingError, match="is no saved run"):
        Recording(tmp_path)
    copy = tmp_path / "run"
    shutil.copytree(place / "float32", copy)
    data = bytearray((copy / "head.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "head.npz").write_bytes(data)
    with pytest.raises(RecordingError, match=r"head\.npz: expected SHA-256"):
        Recording(copy)
    run = Recording(place / "float32")
    run.directory = copy
    (copy / "measures.json").write_text('{"results": {"head": {"name": "head"}}, "end_to_end": 3}')
    with pytest.raises(RecordingError, match=r"measures\.json: not whole: .*expected name, kind, "):
        run.measures()
    (copy / "head.npz").unlink()
    assert main(["diff", str(copy), str(copy)]) == 2
    assert "head.npz: missing" in capsys.readouterr().err
    for content, message in (
        ("{", "not JSON"), ("[]", "no saved run"), ('{"format": "x"}', "no saved run"),
        ('{"format": "glm-trt saved run", "format_version": 1}', "version: expected 3, found 1"),
        ('{"format": "glm-trt saved run", "format_version": 3, "context": 3}', "not whole"),
    ):  # fmt: skip
        (copy / "run.json").write_text(content)
        with pytest.raises(RecordingError, match=message):
            Recording(copy)


def test_nothing_half_written(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off leaves nothing, and what is something else is not replaced."""
    checkpoint, bundle = made("plain")
    options = ValidationOptions(checkpoint=checkpoint, cases=SHORT, save=tmp_path / "run")
    close = recording.Recorder.close_block

    def cut_off(self: Any, block: str) -> None:
        if block == "layer.1":
            raise KeyboardInterrupt
        close(self, block)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recording.Recorder, "close_block", cut_off)
        validate_bundle(bundle, options)
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("x")
    with pytest.raises(RecordingError, match="exists and is not a saved run"):
        validate_bundle(bundle, options)
    assert (tmp_path / "run" / "mine").read_text() == "x"
