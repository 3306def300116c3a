"""The first hour on a GPU: every step of `steps.py`, in order, each with a line of verdict.

    python benchmarks/gpu [--output DIR] [--library FILE] [--only STEP ...] [--again STEP ...]

What is missing here (TensorRT, compute-sanitizer, a header) is a step skipped, with the reason. A
run that was broken off goes on where it was: steps that were ok with the same GPU, plugin library
and options are kept, unless `--again` names them (`all`: every one). `--stand-ins` does all of it
without a GPU; times are then not taken. The results are DIR/bring-up.json, whose schema is beside
this file, and DIR/STEP.log. Exit codes: 0 done, 1 a step is wrong or timed out, 2 wrong usage, 3
there is no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import stand_ins
from outcome import ROOT, Settings
from record import check_record, make_record, table
from runner import run_step
from steps import STEPS

NAMES = [step.name for step in STEPS]
PACKAGES = ("torch", "triton", "onnx", "onnxruntime", "cuda-bindings", "tensorrt-cu13",
            "tensorrt-rtx-cu13", "tensorrt-lean-cu13-bindings")  # fmt: skip


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu", description="Bring-up on this machine's GPU.")
    parser.add_argument("--output", type=Path, default=ROOT / "build/gpu", metavar="DIR")
    parser.add_argument("--library", type=Path,
                        default=ROOT / "build/plugins/libglm_trt_plugins.so")  # fmt: skip
    parser.add_argument("--bundle", type=Path, help="default: the tiny model's, made in DIR")
    parser.add_argument("--backend", choices=("tensorrt", "tensorrt-rtx"),
                        help="default: tensorrt-rtx on what it runs, else tensorrt")  # fmt: skip
    parser.add_argument("--lean", type=Path, metavar="DIR",
                        help="a folder with TensorRT's lean runtime")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="STEP")
    parser.add_argument(
        "--again", nargs="+", choices=[*NAMES, "all"], default=[], metavar="STEP",
        help="though it was ok before",
    )  # fmt: skip
    parser.add_argument("--stand-ins", action="store_true", help="without a GPU")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the steps; see the module."""
    options = parse(arguments)
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    target = None if options.stand_ins else present_target()
    if target is None and not options.stand_ins:
        print("gpu: error: no CUDA device is present; --stand-ins runs without", file=sys.stderr)
        return 3
    backend = options.backend or default_backend(target or "sm90")
    settings = Settings(
        output, options.library.resolve(), (options.bundle or output / "bundle").resolve(),
        backend, options.stand_ins, options.lean and options.lean.resolve(),
    )  # fmt: skip
    if settings.stand_ins:
        stand_ins.environment(settings)  # built before a step's time begins
    versions = {name: installed(name) for name in PACKAGES}
    key = key_of(settings, target, versions)
    began, started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    entries: list[dict[str, Any]] = []
    for step in STEPS:
        if step.name in options.only:
            again = bool({step.name, "all"} & {*options.again})
            entries.append(run_step(step, settings, key, again))
            last = entries[-1]
            print(f"{step.name}: {last['verdict']}: {last['line']}", flush=True)
    seconds = time.monotonic() - started
    record = make_record(settings.as_json(), versions, entries, began, seconds)
    (output / "bring-up.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{table(record)}")
    problem = check_record(record)
    if problem:
        print(f"{output / 'bring-up.json'}: {problem}")
    wrong = not record["ok"] or (problem is not None and not problem.startswith("("))
    return int(wrong)


def present_target() -> str | None:
    """Of the first GPU, as "sm90"; None without one."""
    from step_device import attributes

    found = attributes()
    return None if found is None else str(found["target"])


def default_backend(target: str) -> str:
    """The flavour of TensorRT for such a GPU: data centres' of sm90 and sm100 have `tensorrt`."""
    return "tensorrt" if target in ("sm90", "sm100", "sm103") else "tensorrt-rtx"


def installed(name: str) -> str | None:
    """The version of a distribution, None if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def key_of(settings: Settings, target: str | None, versions: dict[str, str | None]) -> str:
    """What a kept verdict depends on: the options, the library's bytes, the GPU, versions."""
    library = b""
    if settings.library.is_file():
        library = hashlib.sha256(settings.library.read_bytes()).digest()
    what = json.dumps([settings.as_json(), target, versions]).encode()
    return hashlib.sha256(what + library).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
