"""The C++ runtime, built here, makes the tokens that the Python runtime made."""

from __future__ import annotations

import json
from pathlib import Path

from commands import last_line, run_command, run_python, skip_if_missing
from on_backend import need_engines
from outcome import Outcome, Settings, Skipped


def run(settings: Settings) -> Outcome:
    """`glm-trt-run` on the bundle; on stand-ins its tests' bundle, driver and TensorRT."""
    place = settings.output / "runtime"
    tests = ("--tests",) if settings.stand_ins else ()
    status, said = run_python("-P", "-m", "glm_trt.engines.build_runtime", "--output", place,
                              *tests)  # fmt: skip
    skip_if_missing(status, said)
    if status:
        return _wrong(f"the build ended with status {status}: {last_line(said)}")
    built = last_line(said)
    if settings.stand_ins:
        return _on_stand_ins(place, built)
    need_engines(settings)
    file = settings.output / "tokens.json"
    if not file.is_file():
        raise Skipped(f"built ({built}), but there are no tokens to compare with")
    made = json.loads(file.read_text())
    found, problem = _tokens(place, settings.bundle, made["prompt"], len(made["recorded"]),
                             "--backend", settings.backend)  # fmt: skip
    if problem:
        return _wrong(problem)
    if found != made["recorded"]:
        return _wrong(f"tokens {found}: expected {made['recorded']}")
    return Outcome(f"the same {len(found)} tokens", {"tokens": found, "built": built})


def _on_stand_ins(place: Path, built: str) -> Outcome:
    """The whole runtime, then the command on the small bundle that the program writes."""
    driver = {"LD_LIBRARY_PATH": str(place / "tests" / "driver")}
    for program in ("device", "whole"):
        status, said = run_command([place / "tests" / program], **driver)
        if status:
            return _wrong(f"{program} ended with status {status}: {last_line(said)}")
    bundle = place / "small-bundle"
    status, said = run_command([place / "tests" / "whole", "write", bundle], **driver)
    if status:
        return _wrong(f"whole write ended with status {status}: {last_line(said)}")
    wanted = [int(token) for token in said.split()]
    found, problem = _tokens(place, bundle, [1, 2, 3], 32, **driver)
    if problem:
        return _wrong(problem)
    if found != wanted:
        return _wrong(f"tokens {found}: expected {wanted}")
    line = f"the same {len(found)} tokens of a small bundle"
    return Outcome(line, {"tokens": found, "built": built})


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
