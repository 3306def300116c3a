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
    """Export, where the bundle is not there, then build with the plugin library."""
    cli = ("-P", "-m", "glm_trt.cli")
    if not (settings.bundle / "manifest.json").is_file():
        # float32 graphs too, for onnxruntime's tokens.
        status, said = run_python(*cli, "export", CHECKPOINT, "-o", settings.bundle,
                                  "--dtype", "float32", "bfloat16")  # fmt: skip
        skip_if_missing(status, said)
        if status:
            return _failed("export", status, said)
    backend, library = ("--backend", settings.backend), str(settings.library)
    target: tuple[str, ...] = ()
    if settings.stand_ins:  # the library that is checked may be of another target
        target = ("--target", stand_ins.TARGETS[settings.backend])
        compiled = ("--output", ROOT / "build/plugins")
        status, said = run_python("-P", "-m", "glm_trt.engines.build_plugins", settings.bundle,
                                  *backend, *target, *compiled)  # fmt: skip
        skip_if_missing(status, said)
        if status:
            return _failed("build_plugins", status, said)
        library = last_line(said)
        for name in (Path(library).name, "kernels.json"):
            place = settings.output / stand_ins.LIBRARY
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(library).parent / name, place.with_name(name))
    status, said = run_python(*cli, "build", settings.bundle, *backend, "--plugins", library,
                              *target, "--json")  # fmt: skip
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


def _failed(what: str, status: int, said: str) -> Outcome:
    problem = f"{what} ended with status {status}: {last_line(said)}"
    return Outcome(problem, problems=[problem])
