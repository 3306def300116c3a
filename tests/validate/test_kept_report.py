"""A report that passed is taken as it is until something that it depends on changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_oracle, save

from glm_trt.cli import main
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.errors import GlmTrtError
from glm_trt.validate import validation
from glm_trt.validate.reporting import kept_report
from glm_trt.validate.reporting.kept_report import validation_key
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.validation import ValidationOptions

SHORT = ["--longest", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`c` a checkpoint, `b` its bundle, `r` a report that was kept. Copy it before changing it."""
    place = tmp_path_factory.mktemp("kept")
    save(make_oracle(), place / "c")
    export_checkpoint(place / "c", place / "b", ExportOptions(("float32",)))
    command = ["validate", str(place / "b"), "--report", str(place / "r"), "--if-changed"]
    assert main([*command, *SHORT]) == 0
    return place


@pytest.fixture
def copy(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, found at the same place as the original."""
    shutil.copytree(place, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert main(["validate", "b", "--report", "r", "--if-changed", *SHORT]) == 0
    return tmp_path / "copy"


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was validated, instead of taken."""
    seen: list[Any] = []
    validate = validation.validate_bundle

    def counted(*arguments: Any) -> Any:
        seen.append(arguments[0])
        return validate(*arguments)

    monkeypatch.setattr(validation, "validate_bundle", counted)
    return seen


def run(*more: str) -> int:
    return main(["validate", "b", "--report", "r", "--if-changed", *SHORT, *more])


def test_it_is_taken(copy: Path, validated: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in (copy / "r").iterdir()}
    capsys.readouterr()
    assert run() == 0
    captured = capsys.readouterr()
    assert "nothing has changed" in captured.err and "passed" in captured.out
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(before["report.json"])
    assert not validated
    assert {path.name: path.read_bytes() for path in (copy / "r").iterdir()} == before
    # Without being asked to, nothing is taken.
    assert main(["validate", "b", "--report", "r", *SHORT]) == 0
    assert validated
    assert main(["validate", "b", "--if-changed"]) == 2
    assert "--if-changed: expected --report" in capsys.readouterr().err


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_option() -> list[str]:
    return ["--seed", "1"]


def report_by_hand() -> None:
    path = Path("r/report.md")
    path.write_text(path.read_text().replace("Passed", "passed"))


def report_of_a_failure() -> None:
    path = Path("r/report.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ok": False}))
    kept_report.keep_report(Path("r"), Path("r/report.key").read_text().split()[0])


def no_page() -> None:
    Path("r/report.html").unlink()


@pytest.mark.parametrize(
    "change", [other_option, report_by_hand, report_of_a_failure, no_page],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_it_is_not_taken(copy: Path, validated: list[Any], change: Callable[[], Any]) -> None:
    assert run(*(change() or ())) == 0
    assert validated == [Path("b")]


def test_what_the_key_depends_on(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ValidationOptions(cases=CaseOptions(longest=4))
    policy = copy / "policy.toml"
    policy.write_text("")
    (copy / "sources" / "model").mkdir(parents=True)
    source = copy / "sources" / "model" / "x.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr(kept_report, "PACKAGE", copy / "sources")
    options = replace(options, policy=policy)

    def key(**changes: Any) -> str | None:
        return validation_key(Path("b"), replace(options, **changes))

    keys = [key()]
    assert key() == keys[0] is not None
    policy.write_text("# another\n")
    keys.append(key())
    source.write_text("x = 2\n")
    keys.append(key())
    config = copy / "c" / "config.json"
    config.write_text(config.read_text() + "\n")
    keys.append(key())
    keys += [key(dtype="float32"), key(cases=CaseOptions(longest=4, text="text"))]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(99))
    keys.append(key())
    assert len(set(keys)) == len(keys) == 7
    assert key(backend="tensorrt-rtx") is None and key(save=copy / "run") is None
    assert key(provider="cuda") is None and key(provider="cpu") is not None
    flip(copy / "c" / "model.safetensors")
    with pytest.raises(GlmTrtError, match=r"model\.safetensors"):
        key()
