"""Other programs that steps run: their output goes to the step's log, their status is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outcome import ROOT, Settings, Skipped

MISSING = 3  # the exit code of every program here where the machine lacks something


def run_python(*arguments: str | Path, **variables: str) -> tuple[int, str]:
    """The status and output of this Python with these arguments, the tree first on its path."""
    return run_command([sys.executable, *arguments], **variables)


def run_command(command: Sequence[str | Path], **variables: str) -> tuple[int, str]:
    """The status and output of a command, which is written to the log as it ends."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": path} | variables,
    )  # fmt: skip
    print("$", *command)
    print(done.stdout, flush=True)
    return done.returncode, done.stdout


def last_line(said: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in said.splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "it printed nothing")


def skip_if_missing(status: int, said: str) -> None:
    """Raises Skipped where a program of ours ended because the machine lacks something."""
    if status == MISSING:
        raise Skipped(last_line(said).removeprefix("glm-trt: error: "))
    if status and "ModuleNotFoundError" in said:
        raise Skipped(last_line(said).removeprefix("ModuleNotFoundError: "))
    if status and "PackageNotFoundError" in said:  # it is run from the tree, and was not installed
        raise Skipped(f"{last_line(said).rpartition(' ')[2]} is not installed: pip install -e .")


def operators(settings: Settings, *arguments: str, **variables: str) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of gpu_operators.py on the plugin library, {} where it wrote none."""
    if not settings.library.is_file():
        raise Skipped(f"{settings.library} is not there: make plugins, or name it by --library")
    file = settings.output / "operators.json"
    file.unlink(missing_ok=True)
    script = ROOT / "benchmarks/gpu_operators.py"
    given = ["--library", settings.library, "--json", file, *arguments]
    if settings.stand_ins:
        given.append("--stand-ins")
    status, said = run_python(script, *given, **variables)
    skip_if_missing(status, said)
    found = json.loads(file.read_text()) if file.is_file() else {}
    if not found:
        found = {"wrong": [f"gpu_operators.py ended with status {status}: {last_line(said)}"]}
    return status, found
