"""Runs the steps: one process each, ended at its limit, its result kept for the next time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import stand_ins
from outcome import Settings
from steps import Step

HERE = Path(__file__).resolve().parent
GRACE_S = 5
# Interpreters take longer than a GPU, and share the machine with other work.
STAND_INS_TAKE = 4


def run_step(step: Step, settings: Settings, key: str, again: bool) -> dict[str, Any]:
    """The step's entry of the record.

    One that was ok before, with the same `key` (of what it depends on), is taken as it is.
    """
    result, kept = (settings.output / f"{step.name}{end}" for end in (".result", ".json"))
    if not again and (before := _read(kept)) and before["key"] == key:
        entry: dict[str, Any] = before["entry"]
        if entry["verdict"] == "ok":
            return entry | {"kept": True}
    limit = step.limit_s * (STAND_INS_TAKE if settings.stand_ins else 1)
    for path in (result, kept):
        path.unlink(missing_ok=True)
    started = time.monotonic()
    status = _run(step, settings, result, limit)
    seconds = round(time.monotonic() - started, 1)
    log = settings.output / f"{step.name}.log"
    found = _read(result)
    result.unlink(missing_ok=True)
    if status is None:
        found = _failed("timed out", f"not done after {limit} s; see {log.name}")
    elif found is None or status:
        found = _failed("WRONG", f"ended with status {status}: {_last_line(log)}")
    entry = {"name": step.name, "title": step.title, **found, "seconds": seconds,
             "limit_s": limit, "kept": False}  # fmt: skip
    kept.write_text(json.dumps({"key": key, "entry": entry}, indent=1))
    return entry


def _failed(verdict: str, line: str) -> dict[str, Any]:
    return {"verdict": verdict, "line": line, "problems": [line], "measured": {}}


def _run(step: Step, settings: Settings, result: Path, limit: int) -> int | None:
    """The exit status of the step's process; None where it was ended at the limit."""
    file = settings.output / "settings.json"
    file.write_text(json.dumps(settings.as_json()))
    command = [sys.executable, str(HERE / "one_step.py"), step.module, str(file), str(result)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if settings.stand_ins:
        environment |= stand_ins.environment(settings)
    with (settings.output / f"{step.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:  # what the step started goes with it, also after Ctrl-C
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON file, None where it is not there or was not written to its end."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "it printed nothing")
