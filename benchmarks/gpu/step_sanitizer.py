"""NVIDIA's compute-sanitizer over the kernels' test cases: accesses, initialisation, barriers."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time

from commands import last_line, run_command
from outcome import ROOT, Outcome, Settings, Skipped

TOOLS = ("memcheck", "initcheck", "synccheck")
SECONDS_LEFT = 100  # what the slowest tool took, with room
REPORTED = re.compile(r"ERROR SUMMARY: (\d+) error")


def run(settings: Settings) -> Outcome:
    """Each tool that there is time for; the first always is."""
    if settings.stand_ins:
        raise Skipped("it needs a GPU")
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
