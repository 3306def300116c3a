"""The engines, block by block, against the eager model."""

from __future__ import annotations

from commands import last_line, run_python, skip_if_missing
from on_backend import need_engines
from outcome import Outcome, Settings


def run(settings: Settings) -> Outcome:
    """`glm-trt validate`; what was seen is kept, for `glm-trt diff` on another machine."""
    need_engines(settings)
    saved = settings.output / "validated"
    shorter = ("--longest", "24") if settings.stand_ins else ()
    status, said = run_python("-P", "-m", "glm_trt.cli", "validate", settings.bundle, "--backend",
                              settings.backend, "--save", saved, *shorter)  # fmt: skip
    skip_if_missing(status, said)
    verdicts = [line for line in said.splitlines() if f" on {settings.backend} in " in line]
    if status or not verdicts:
        line = verdicts[0] if verdicts else last_line(said)
        return Outcome(line, problems=[f"validate ended with status {status}: {line}"])
    what = ("blocks", "greedy tokens")
    found = [line.strip() for line in said.splitlines() if line.strip().startswith(what)]
    line = "; ".join([verdicts[0].rpartition("/")[2], *(" ".join(x.split()) for x in found)])
    return Outcome(f"{line}; kept in {saved}", {"saved": str(saved)})
