"""The C++ runtime, built here, makes the tokens that the Python runtime made."""

from __future__ import annotations

import json
from pathlib import Path

import stand_ins
from commands import last_line, run_command, run_python, skip_if_missing
from on_backend import need_engines
from outcome import Outcome, Settings, Skipped


def run(settings: Settings) -> Outcome:
    """`glm-trt-run` on the bundle."""
    place = settings.output / "runtime"
    status, said = run_python("-P", "-m", "glm_trt.engines.build.runtime", "--output", place)
    skip_if_missing(status, said)
    if status:
        return _wrong(f"the build ended with status {status}: {last_line(said)}")
    built = last_line(said)
    need_engines(settings)
    file = settings.output / "tokens.json"
    if not file.is_file():
        raise Skipped(f"built ({built}), but there are no tokens to compare with")
    made = json.loads(file.read_text())
    variables = {}
    if settings.stand_ins:
        there = stand_ins.environment(settings)
        variables = {name: there[name] for name in ("LD_LIBRARY_PATH", "STAND_IN_TARGET")}
    found, problem = _tokens(place, settings.bundle, made["prompt"], len(made["recorded"]),
                             "--backend", settings.backend, **variables)  # fmt: skip
    if problem:
        return _wrong(problem)
    if found != made["recorded"]:
        return _wrong(f"tokens {found}: expected {made['recorded']}")
    return Outcome(f"the same {len(found)} tokens", {"tokens": found, "built": built})


def _tokens(
    place: Path, bundle: Path, prompt: list[int], count: int, *more: str, **variables: str
) -> tuple[list[int], str | None]:
    """What `glm-trt-run` makes, and what went wrong."""
    ids = ",".join(map(str, prompt))
    status, said = run_command(
        [place / "glm-trt-run", bundle, "--input-ids", ids, "--max-new-tokens", str(count),
         "--json", *more], **variables,
    )  # fmt: skip
    skip_if_missing(status, said)
    if status:
        return [], f"glm-trt-run ended with status {status}: {last_line(said)}"
    return json.loads(said.splitlines()[-1])["token_ids"], None


def _wrong(problem: str) -> Outcome:
    return Outcome(problem, problems=[problem])
