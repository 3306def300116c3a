"""Each TensorRT that is installed: it loads the plugin library, and the plans for this GPU."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from commands import last_line, run_python
from outcome import Outcome, Settings, Skipped
from step_device import attributes

HERE = Path(__file__).resolve().parent
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx", "tensorrt_lean": "tensorrt"}
PLUGINS = 11


def run(settings: Settings) -> Outcome:
    """The plugins in one runtime's registry and in no other, and plans that were built before."""
    if not settings.library.is_file():
        raise Skipped(f"{settings.library} is not there")
    modules = [name for name in FLAVOURS if installed(name, settings)]
    if not modules:
        raise Skipped("no TensorRT is installed: neither tensorrt nor tensorrt_rtx")
    device = attributes()
    target = "none" if device is None else str(device["target"])
    measured: dict[str, Any] = {}
    problems, lines = [], []
    for module in modules:
        plans = sorted(settings.bundle.glob(f"engines/{FLAVOURS[module]}/{target}/*/*.plan"))
        status, said = run_python(
            HERE / "load_plans.py", module, settings.library, *plans, **lean_path(settings)
        )
        if status:
            problems.append(f"{module}: ended with status {status}: {last_line(said)}")
            continue
        # A TensorRT may have last words behind it.
        found = json.loads(next(x for x in reversed(said.splitlines()) if x.startswith("{")))
        measured[module] = found
        name = f"{module} {found['version']}"
        if not found["loaded"] or len(found["creators"]) != PLUGINS:
            problems.append(f"{name}: {len(found['creators'])} of {PLUGINS} plugins are registered")
        if found["in_another_runtime"]:
            problems.append(f"{name}: another runtime has {found['in_another_runtime'][0]}")
        refused = [plan for plan, good in found["plans"].items() if not good]
        problems += [f"{name}: refuses {Path(plan).name}" for plan in refused]
        lines.append(
            f"{name}: {len(found['creators'])} plugins, {len(plans) - len(refused)} of "
            f"{len(plans)} plans for {target} load"
        )
    return Outcome("; ".join(problems or lines), measured, problems)


def installed(module: str, settings: Settings) -> bool:
    """Whether there is such a module; the lean runtime may lie in a folder."""
    if module == "tensorrt_lean":
        names = ("tensorrt_lean", "tensorrt_lean_bindings")
        there = settings.lean is not None and any((settings.lean / x).exists() for x in names)
        return there or any(find_spec(x) for x in names)
    return find_spec(module) is not None


def lean_path(settings: Settings) -> dict[str, str]:
    """The variable that puts the folder of the lean runtime on Python's path."""
    if settings.lean is None:
        return {}
    places = (str(settings.lean), os.environ.get("PYTHONPATH"))
    return {"PYTHONPATH": os.pathsep.join(filter(None, places))}
