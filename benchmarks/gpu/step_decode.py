"""Greedy tokens of the engines, each step replayed from a graph and each queued anew."""

from __future__ import annotations

import json
from pathlib import Path

from commands import last_line, run_python, skip_if_missing
from on_backend import need_engines
from outcome import Outcome, Settings

HERE = Path(__file__).resolve().parent


def run(settings: Settings) -> Outcome:
    """Both must agree; onnxruntime's float32 tokens may differ where bfloat16 rounds."""
    need_engines(settings)
    file = settings.output / "tokens.json"
    file.unlink(missing_ok=True)
    status, said = run_python(HERE / "on_backend.py", settings.bundle, settings.backend, file)
    skip_if_missing(status, said)
    if status or not file.is_file():
        problem = f"ended with status {status}: {last_line(said)}"
        return Outcome(problem, problems=[problem])
    found = json.loads(file.read_text())
    problems = []
    if found["recorded"] != found["queued"]:
        problems.append("replayed steps give other tokens than queued ones")
    if not found["replays"]:
        problems.append("no step was replayed from a graph")
    if settings.stand_ins and found["recorded"] != found["onnxruntime"]:
        problems.append("the tokens are not onnxruntime's")
    same = sum(a == b for a, b in zip(found["recorded"], found["onnxruntime"], strict=True))
    line = (
        f"{len(found['recorded'])} tokens, {found['replays']} steps replayed, {same} tokens as "
        "onnxruntime's"
    )
    return Outcome("; ".join(problems) or line, found, problems)
