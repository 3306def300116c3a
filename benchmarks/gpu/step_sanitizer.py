"""NVIDIA's compute-sanitizer over the kernels' test cases: accesses, initialisation, barriers."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time

import stand_ins
from commands import last_line, run_command, run_python
from outcome import ROOT, Outcome, Settings, Skipped

TOOLS = ("memcheck", "initcheck", "synccheck")
# Programs of tests/stand_ins/programs.py, each with a fault of this kind.
PLANTED = ("write behind", "write before", "write behind odd size", "copy beyond",
           "freed twice", "replay of a moved buffer")  # fmt: skip
SECONDS_LEFT = 100  # what the slowest tool took, with room
REPORTED = re.compile(r"ERROR SUMMARY: (\d+) error")


def run(settings: Settings) -> Outcome:
    """Each tool that there is time for; the first always is."""
    if settings.stand_ins:
        return _strict_driver(settings)
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.isfile(program):
        raise Skipped("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    if not settings.library.is_file():
        raise Skipped(f"{settings.library} is not there")
    ends = time.monotonic() + 225
    found, problems = {}, []
    for tool in TOOLS:
        if found and time.monotonic() + SECONDS_LEFT > ends:
            break
        status, said = run_command(
            [program, "--tool", tool, sys.executable, ROOT / "benchmarks/gpu_operators.py",
             "--cases-only", "--library", settings.library],
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )  # fmt: skip
        summary = REPORTED.search(said)
        if summary is None:
            problems.append(f"{tool}: ended with status {status}: {last_line(said)}")
            continue
        found[tool] = int(summary[1])
        if found[tool]:
            problems.append(f"{tool}: {found[tool]} errors")
        elif status:
            problems.append(f"{tool}: ended with status {status}")
    line = ", ".join(f"{tool} {count} errors" for tool, count in found.items())
    left = [tool for tool in TOOLS if tool not in found]
    if left:
        line += f"; no time for {', '.join(left)}"
    return Outcome("; ".join(problems) if problems else line, {"errors": found}, problems)


def _strict_driver(settings: Settings) -> Outcome:
    """In its place the stand-in, which the step before ran on: it finds what is planted."""
    with tempfile.TemporaryDirectory() as scratch:
        status, said = run_python(
            ROOT / "tests/stand_ins/programs.py", scratch, **stand_ins.environment(settings)
        )
    if status:
        problem = f"programs.py ended with status {status}: {last_line(said)}"
        return Outcome(problem, problems=[problem])
    found = json.loads(said.splitlines()[-1])
    problems = [f"{name}: not found" for name in PLANTED if not found[name]["rules"]]
    if rules := found["rightly"]["rules"]:
        problems.append(f"a right program: {', '.join(rules)}")
    line = f"in its place the strict driver: {len(PLANTED)} planted faults found, no other"
    return Outcome("; ".join(problems) or line, {"planted": list(PLANTED)}, problems)
