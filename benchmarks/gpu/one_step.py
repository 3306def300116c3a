"""One step in a process of its own: `python one_step.py MODULE SETTINGS.json RESULT.json`.

The result is written whole or not at all; whoever waits takes a process that ended without one as
a step that is wrong.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from outcome import ROOT, Outcome, Settings, Skipped

sys.path.insert(0, str(ROOT))


def main() -> int:
    """Serve it."""
    module, settings_file, result_file = sys.argv[1:]
    settings = Settings.from_json(json.loads(Path(settings_file).read_text()))
    verdict = "ok"
    try:
        outcome = importlib.import_module(module).run(settings)
        if outcome.problems:
            verdict = "WRONG"
    except Skipped as reason:
        verdict, outcome = "skipped", Outcome(str(reason))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("glm_trt", "outcome"):
            raise
        verdict, outcome = "skipped", Outcome(f"the Python module {error.name} is not installed")
    found = {"verdict": verdict, "line": outcome.line, "problems": outcome.problems,
             "measured": outcome.measured}  # fmt: skip
    partial = Path(f"{result_file}.{os.getpid()}")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(result_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
