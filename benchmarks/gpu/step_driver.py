"""The driver keeps the rules that the code is written for."""

from __future__ import annotations

import json
from pathlib import Path

from commands import last_line, run_python, skip_if_missing
from outcome import Outcome, Settings, Skipped

SCRIPT = Path(__file__).resolve().parent / "driver_rules.py"


def run(settings: Settings) -> Outcome:
    """Each rule in a process of its own: what was expected, what this driver says."""
    if not SCRIPT.is_file():
        raise Skipped(f"{SCRIPT.name} is not there")
    status, said = run_python(SCRIPT)
    skip_if_missing(status, said)
    try:
        found = json.loads(said.splitlines()[-1])
    except (json.JSONDecodeError, IndexError):
        wrong = f"ended with status {status}: {last_line(said)}"
        return Outcome(wrong, problems=[wrong])
    wrong = [
        f"{name}: expected {rule['expected']}, found {rule['found']}"
        for name, rule in found.items() if rule["expected"] != rule["found"]
    ]  # fmt: skip
    line = f"{len(found) - len(wrong)} of {len(found)} rules hold"
    return Outcome(line + (f"; {wrong[0]}" if wrong else ""), found, wrong)
