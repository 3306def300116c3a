"""The kernels as they are shipped, through the plugins' `enqueue`, against naive references."""

from __future__ import annotations

from commands import operators
from outcome import Outcome, Settings


def run(settings: Settings) -> Outcome:
    """Every test case of every operator in each dtype; a GPU also replays each from a graph."""
    status, found = operators(settings, "--cases-only")
    wrong = found["wrong"]
    if status and not wrong:
        wrong = [f"gpu_operators.py ended with status {status}"]
    checked = found.get("checked", 0)
    line = f"{checked - len(wrong)} of {checked} cases agree"
    if wrong:
        line += f"; first: {wrong[0]}"
    elif settings.stand_ins:
        line += ", interpreted"
    else:
        line += ", and replayed from a graph give the same bytes"
    return Outcome(line, {"checked": checked}, wrong)
