"""The tiny model exported, and its engines built for this GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import stand_ins
from commands import last_line, run_python, skip_if_missing
from outcome import ROOT, Outcome, Settings

CHECKPOINT = ROOT / "tests/data/glm-5.1-tiny"


def run(settings: Settings) -> Outcome:
    """Export, unless a bundle was named that is there, then build with the plugin library."""
    cli = ("-P", "-m", "glm_trt.cli")
    own = settings.bundle == settings.output / "bundle"  # of this version, whatever lies there
    if own or not (settings.bundle / "manifest.json").is_file():
        checkpoint, dtypes = CHECKPOINT, ("float32", "bfloat16")  # float32 for onnxruntime's tokens
        if settings.stand_ins:
            checkpoint, dtypes = in_float32(settings.output / "checkpoint"), ("float32",)
        status, said = run_python(*cli, "export", checkpoint, "-o", settings.bundle,
                                  "--dtype", *dtypes)  # fmt: skip
        skip_if_missing(status, said)
        if status:
            return _failed("export", status, said)
    given: tuple[str, ...] = ("--plugins", str(settings.library))
    if settings.stand_ins:  # an interpreter would take a minute for a token of each plugin
        given = ("--no-plugins", "--target", stand_ins.TARGETS[settings.backend])
    status, said = run_python(*cli, "build", settings.bundle, "--backend", settings.backend,
                              *given, "--json")  # fmt: skip
    skip_if_missing(status, said)
    if status:
        return _failed("build", status, said)
    engines = json.loads(said.splitlines()[-1])
    size, seconds = (sum(e[name] for e in engines) for name in ("bytes", "seconds"))
    first = engines[0]
    line = (
        f"{len(engines)} engines of {first['backend']} {first['backend_version']} for "
        f"{first['target']}, {size / 1e6:.1f} MB, in {seconds:.0f} s"
    )
    return Outcome(line, {"engines": engines})


def in_float32(place: Path) -> Path:
    """A copy of the checkpoint that runs in float32: the stand-ins have no other dtype."""
    shutil.copytree(CHECKPOINT, place, dirs_exist_ok=True)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return place


def _failed(what: str, status: int, said: str) -> Outcome:
    problem = f"{what} ended with status {status}: {last_line(said)}"
    return Outcome(problem, problems=[problem])
