"""The driver keeps the rules that the code is written for, and the stand-in for it too."""

from __future__ import annotations

import json

from commands import last_line, run_python, skip_if_missing
from outcome import ROOT, Outcome, Settings, Skipped

SCRIPT = ROOT / "tests/stand_ins/conformance.py"


def run(settings: Settings) -> Outcome:
    """Each rule in a process of its own: what was expected, what this driver says."""
    if not SCRIPT.is_file():
        raise Skipped(f"{SCRIPT.relative_to(ROOT)} is not there")
    status, said = run_python(SCRIPT)
    skip_if_missing(status, said)
    try:
        found = json.loads(said[said.index("{") : said.rindex("}") + 1])
    except ValueError:
        wrong = f"ended with status {status}: {last_line(said)}"
        return Outcome(wrong, problems=[wrong])
    problems = []
    for name in found["wrong"]:
        rule = found["found"][name]
        problems.append(f"{name}: expected {rule['expected']}, found {rule['found']}")
    line = f"{found['rules'] - len(problems)} of {found['rules']} rules hold"
    return Outcome("; ".join([line, *problems[:1]]), found, problems)
