"""The bring-up without a GPU: steps of the test's own, each in its process, and the record."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
MODULES = ("outcome", "stand_ins", "steps", "runner", "record", "commands", "step_device")
GOOD = """
from outcome import Outcome
def run(settings):
    path = settings.output / "runs"
    path.write_text(path.read_text() + "." if path.exists() else ".")
    return Outcome("all well", {"number": 3})
"""
BODIES = {
    "good": GOOD,
    "wrong": "from outcome import Outcome\ndef run(s): return Outcome('no', problems=['2 + 2'])",
    "crash": "import os\ndef run(s):\n print('the last words', flush=True)\n os._exit(7)",
    "late": GOOD + "import atexit, os\natexit.register(lambda: os._exit(86))",
    "slow": "import time\ndef run(s): time.sleep(60)",
    "absent": "import no_such_module_at_all",
    "skip": "from outcome import Skipped\ndef run(s): raise Skipped('there is none')",
}


@pytest.fixture
def bring_up(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the folder, by their names, and none of them afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def settings_of(bring_up: Any, output: Path) -> Any:
    library = output / "library.so"
    return bring_up["outcome"].Settings(output, library, output / "bundle", "tensorrt", False)


def entries_of(bring_up: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each body gives as a step, under the name of a real one."""
    found = {}
    monkeypatch.setenv("PYTHONPATH", str(place))
    names = [step.name for step in bring_up["steps"].STEPS]
    for name, (body, text) in zip(names, BODIES.items(), strict=False):
        (place / f"own_{body}.py").write_text(text)
        limit = 1 if body == "slow" else 30
        step = bring_up["steps"].Step(name, "a title", f"own_{body}", limit)
        found[body] = bring_up["runner"].run_step(step, settings_of(bring_up, place), "k", False)
    return found


def test_verdicts_and_their_record(
    bring_up: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = entries_of(bring_up, tmp_path, monkeypatch)
    assert {body: (entry["verdict"], entry["line"]) for body, entry in found.items()} == {
        "good": ("ok", "all well"),
        "wrong": ("WRONG", "no"),
        "crash": ("WRONG", "ended with status 7: the last words"),
        "late": ("WRONG", "ended with status 86: it printed nothing"),
        "slow": ("timed out", "not done after 1 s; see times.log"),
        "absent": ("skipped", "the Python module no_such_module_at_all is not installed"),
        "skip": ("skipped", "there is none"),
    }
    make, check = bring_up["record"].make_record, bring_up["record"].check_record
    settings = settings_of(bring_up, tmp_path).as_json()
    entries = list(found.values())
    entries[0]["measured"] = {}  # the device's
    record = make(settings, {"torch": "2", "onnx": None}, entries, "2026-01-02T03:04:05Z", 1.0)
    assert check(record) is None and not record["ok"]
    table = bring_up["record"].table(record).splitlines()
    assert len(table) == 1 + len(BODIES) and "timed out" in table[5]
    for path, value, said in (
        (("steps", 1, "problems"), [], "steps/1/problems"),
        (("steps", 0, "seconds"), -1, "steps/0/seconds"),
        (("began",), "now", "began"),
        (("device",), {"name": "x"}, "device"),
    ):
        broken = copy.deepcopy(record)
        place: Any = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert said in check(broken)


def test_what_was_ok_is_kept(
    bring_up: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "own_good.py").write_text(BODIES["good"])
    (tmp_path / "own_wrong.py").write_text(BODIES["wrong"])
    settings = settings_of(bring_up, tmp_path)
    run = bring_up["runner"].run_step
    step = bring_up["steps"].Step("times", "a title", "own_good", 30)
    kept = [
        run(step, settings, key, again)["kept"]
        for key, again in (("a", False), ("a", False), ("b", False), ("b", True), ("b", False))
    ]
    assert kept == [False, True, False, False, True]
    assert (tmp_path / "runs").read_text() == "..."
    (tmp_path / "times.json").write_text('{"key": "b", "ent')  # of a run that was broken off
    assert not run(step, settings, "b", False)["kept"]
    wrong = bring_up["steps"].Step("plans", "a title", "own_wrong", 30)
    assert [run(wrong, settings, "a", False)["kept"] for _ in range(2)] == [False, False]


def test_limits_are_within_the_budget(bring_up: Any) -> None:
    steps = bring_up["steps"].STEPS
    assert sum(step.limit_s for step in steps) <= 25 * 60
    schema = json.loads((FOLDER / "bring_up.schema.json").read_text())
    assert schema["$defs"]["step"]["properties"]["name"]["enum"] == [step.name for step in steps]
    assert all((FOLDER / f"{step.module}.py").is_file() for step in steps)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: use make gpu")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER, "--output", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stderr == "gpu: error: no CUDA device is present; --stand-ins runs without\n"
    wrong = subprocess.run([sys.executable, FOLDER, "--only", "x"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "invalid choice: 'x'" in wrong.stderr


@pytest.mark.slow
def test_the_whole_on_stand_ins(library: Path, tmp_path: Path) -> None:
    """Every line is green, and the record is of its schema."""
    command = [sys.executable, FOLDER, "--stand-ins", "--output", tmp_path, "--library", library]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "bring-up.json").read_text())
    found = {entry["name"]: entry["verdict"] for entry in record["steps"]}
    assert {*found.values()} == {"ok"} and len(found) == 10
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout.count("(kept)") == 10
