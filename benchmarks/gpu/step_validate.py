"""The engines, block by block, against the eager model."""

from __future__ import annotations

from commands import last_line, skip_if_missing
from on_backend import glm_trt, need_engines
from outcome import Outcome, Settings


def run(settings: Settings) -> Outcome:
    """`glm-trt validate`; what was seen is kept, for `glm-trt diff` on another machine."""
    need_engines(settings)
    saved = settings.output / "validated"
    status, said = glm_trt(
        settings, "validate", str(settings.bundle), "--backend", settings.backend, "--save",
        str(saved),
    )  # fmt: skip
    skip_if_missing(status, said)
    verdicts = [line for line in said.splitlines() if f" on {settings.backend} in " in line]
    if status or not verdicts:
        line = verdicts[0] if verdicts else last_line(said)
        return Outcome(line, problems=[f"validate ended with status {status}: {line}"])
    what = ("blocks", "greedy tokens")
    found = [line.strip() for line in said.splitlines() if line.strip().startswith(what)]
    line = "; ".join([verdicts[0].rpartition("/")[2], *(" ".join(x.split()) for x in found)])
    return Outcome(f"{line}; kept in {saved}", {"saved": str(saved)})
