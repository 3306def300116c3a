"""Times candidates for the blocks, warps and stages of every kernel on this machine's GPU.

Candidates are what a launch has, each of its numbers halved or doubled, and combinations drawn by a
seed. They are compiled side by side by this machine's Triton, checked against what its own
configuration gives, and timed as `gpu_operators.py` does. What is printed, and written with
`--json`, is the launch's configuration and the fastest for each kernel and size.

    python benchmarks/gpu_tune.py [--only REGEX] [--candidates 32] [--seconds 240] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, str(Path(__file__).parent))

import gpu_operators
import torch
from gpu_operators import compare, time_of
from gpu_works import Work, works

from glm_trt.plugins import operators
from glm_trt.plugins.common import run as common
from glm_trt.plugins.common.launch import Launch, Launches

Config = dict[str, int]
TOLERANCE = 2e-2
# What other launches, or sizes of the workspace, take for granted.
FIXED = {"BLOCK_T"}
FIXED_OF_EXPERTS = {"BLOCK_M"}
WARPS, STAGES = (2, 4, 8), (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Call:
    """One call of an operator: everything that a kernel's compilation depends on."""

    operator: str
    shapes: tuple[tuple[tuple[int, ...], str] | None, ...]
    attributes: tuple[tuple[str, Any], ...]
    target: str

    def tensors(self) -> list[torch.Tensor | None]:
        """Its inputs without data."""
        return [
            None if of is None else torch.empty(of[0], dtype=getattr(torch, of[1]), device="meta")
            for of in self.shapes
        ]


class Recorder:
    """Stands for `launch.run`: keeps what the last call was, and runs others if told to."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.launches: Launches | None = None
        self.poison = False  # outputs and workspace are NaN before: what is not written shows

    def __call__(
        self, launches: Launches, kernels: Any, tensors: Any, attributes: Any, target: str
    ) -> Any:
        """As `glm_trt.plugins.common.run.run`."""
        shapes = tuple(
            None if t is None else (tuple(t.shape), str(t.dtype).removeprefix("torch."))
            for t in tensors
        )
        attributes_of = tuple(sorted(attributes.items()))
        self.call = Call(launches.contract.torch_name, shapes, attributes_of, target)
        return common.run(
            self.launches or launches, kernels, tensors, attributes, target,
            allocate=poisoned if self.poison else torch.empty,
        )  # fmt: skip


class Compiling:
    """Stands for the kernels: each is compiled, and nothing is launched."""

    def __init__(self, kernels: dict[str, Any]) -> None:
        self._kernels = kernels

    def __getitem__(self, name: str) -> Any:
        """The kernel of that name."""
        kernel = self._kernels[name]
        return _Grids(lambda grid, *a, **k: kernel.warmup(*a, grid=grid, **k))


class _Grids:
    def __init__(self, launch: Callable[..., Any]) -> None:
        self._launch = launch

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        """What launches on that grid."""
        return lambda *arguments, **options: self._launch(grid, *arguments, **options)


def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
    """A tensor of NaN, in any dtype."""
    made = torch.empty(*shape, **options)
    made.view(torch.uint8).fill_(0xFF)
    return made


def launches_of(operator: str) -> Launches:
    """An operator's launches."""
    found: Launches = import_module(f"glm_trt.plugins.{operator}.launch").LAUNCHES
    return found


def with_config(launches: Launches, index: int, config: Config) -> Launches:
    """The same with another configuration of one launch."""
    changed = replace(launches.steps[index], configs={"*": config})
    return replace(launches, steps=(*launches.steps[:index], changed, *launches.steps[index + 1 :]))


def compile_candidate(call: Call, index: int, config: Config) -> None:
    """In a process of its own: compile one launch of a call into Triton's cache."""
    launches = launches_of(call.operator)
    alone = replace(launches, steps=(replace(launches.steps[index], configs={"*": config}),))
    kernels = vars(import_module(f"glm_trt.plugins.{call.operator}.kernel"))
    common.run(
        alone, Compiling(kernels), call.tensors(), dict(call.attributes), call.target
    )  # fmt: skip


def active_launches(call: Call) -> Iterator[tuple[int, Launch, Config]]:
    """The launches that a call makes, with their numbers and configurations."""
    launches, tensors = launches_of(call.operator), call.tensors()
    names = common.names_of(launches.contract, tensors, dict(call.attributes))
    dtype = launches.contract.types_of(tensors).activation
    for launch, config in launches.active(names, call.target, dtype):
        yield launches.steps.index(launch), launch, config


def candidates(call: Call, config: Config, count: int) -> list[Config]:
    """Other configurations, those that differ in one number first."""
    fixed = FIXED | (FIXED_OF_EXPERTS if "experts" in call.operator else set())
    values: dict[str, tuple[int, ...]] = {}
    for name, value in config.items():
        if name == "num_warps":
            values[name] = WARPS
        elif name == "num_stages":
            values[name] = STAGES
        elif name.startswith("BLOCK_") and name not in fixed:
            least = min(16, value)  # of a side of a product
            values[name] = tuple(
                v for v in (value // 4, value // 2, value, 2 * value) if v >= least
            )
        else:
            values[name] = (value,)
    one = [config | {n: v} for n, choice in values.items() for v in choice if v != config[n]]
    every = [dict(zip(values, v, strict=True)) for v in itertools.product(*values.values())]
    random.Random(0).shuffle(every)
    found = []
    for candidate in (*one, *every):
        if candidate != config and candidate not in found:
            found.append(candidate)
    return found[:count]


def main() -> int:
    """Compile, check, time; the exit codes are those of `glm-trt`."""
    parser = argparse.ArgumentParser(description="Time other configurations of the kernels.")
    parser.add_argument("--only", default="", metavar="REGEX", help="of what is timed")
    parser.add_argument("--kernels", default="", metavar="REGEX", help="of what is tuned")
    parser.add_argument("--candidates", type=int, default=32, help="of each kernel")
    parser.add_argument("--seconds", type=float, default=240, help="for compiling")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_tune: error: no CUDA device is present", file=sys.stderr)
        return 3
    recorder = Recorder()
    operators.run = recorder  # type: ignore[assignment]
    chosen = [w for w in works(torch.bfloat16) if re.search(options.only, w.name)]
    calls: dict[str, Call] = {}
    for work in chosen:
        work.ours()
        assert recorder.call is not None
        calls[work.name] = recorder.call
    context = multiprocessing.get_context("spawn")
    rows = []
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        compiled: dict[str, Future[None]] = {}
        for work in chosen:
            call = calls[work.name]
            for index, launch, config in active_launches(call):
                if not re.search(options.kernels, launch.kernel):
                    continue
                for candidate in candidates(call, config, options.candidates):
                    compiled[key_of(work, index, candidate)] = pool.submit(
                        compile_candidate, call, index, candidate
                    )
        deadline = time.monotonic() + options.seconds
        while time.monotonic() < deadline and not all(f.done() for f in compiled.values()):
            time.sleep(0.5)
        for future in compiled.values():
            future.cancel()
        done = {k for k, f in compiled.items() if f.done() and not f.cancelled()
                and f.exception() is None}  # fmt: skip
        print(f"{len(done)} of {len(compiled)} candidates compiled", flush=True)
        for process in list(pool._processes.values()):
            process.kill()
    for work in chosen:
        for row in tune(work, calls[work.name], done, recorder, options):
            rows.append(row)
            print(line_of(row), flush=True)
    if options.json:
        device = torch.cuda.get_device_name()
        options.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1))
    return 0


def line_of(row: dict[str, Any]) -> str:
    """A row of the table, with what the fastest configuration has otherwise."""
    changed = {k: v for k, v in row["best"].items() if v != row["shipped"][k]}
    times = f"{row['shipped_s'] * 1e6:>9.1f} us {row['best_s'] * 1e6:>9.1f} us"
    return f"{row['name']:<26}{row['kernel']:<24}{times} {changed}"


def key_of(work: Work, index: int, candidate: Config) -> str:
    """What names a candidate of a launch of a work."""
    return repr((work.name, index, candidate))


def tune(
    work: Work, call: Call, compiled: set[str], recorder: Recorder, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The fastest configuration of each launch, the others as they are shipped."""
    launches = launches_of(call.operator)
    recorder.launches = None
    expected = work.ours()
    expected = tuple(t.clone() for t in (expected if isinstance(expected, tuple) else (expected,)))
    usual = time_of(work.ours, 5)
    for index, launch, config in active_launches(call):
        if not re.search(options.kernels, launch.kernel):
            continue
        timed: list[tuple[float, Config]] = [(usual, config)]
        for candidate in candidates(call, config, options.candidates):
            if key_of(work, index, candidate) not in compiled:
                continue
            recorder.launches = with_config(launches, index, candidate)
            try:
                recorder.poison = True
                found = work.ours()
                torch.cuda.synchronize()
                recorder.poison = False
                found = found if isinstance(found, tuple) else (found,)
                if compare(found, expected, TOLERANCE, gpu_operators.INDICES_THAT_MAY_DIFFER):
                    continue
                timed.append((time_of(work.ours, 5), candidate))
            except Exception as error:  # of Triton: what does not fit this GPU
                if "illegal" in str(error):
                    raise
            finally:
                recorder.launches, recorder.poison = None, False
        timed.sort(key=lambda of: of[0])
        yield {"name": work.name, "kernel": launch.kernel, "launch": index, "shipped": config,
               "shipped_s": usual, "best": timed[0][1], "best_s": timed[0][0],
               "next": timed[1:4]}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
