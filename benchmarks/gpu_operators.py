"""Every kernel on this machine's GPU: agreement with the references, then times.

The kernels are those of the plugin library, through the plugins' own `enqueue`, as TensorRT calls
it; with `--jit` the same sources as this machine's Triton compiles them. Each operator's test cases
are checked in every dtype, then GLM-5.1's sizes against eager PyTorch on the GPU.

Times are medians of a call in a CUDA graph, with the L2 cache cleared before each, against eager
PyTorch (with `--compile` also `torch.compile`) on the same tensors, and as a share of the time that
the operator's bytes or products need at the rates measured here. Quantised operators are timed
against dequantising (of experts those hit) and a bfloat16 product. What is wrong is not timed, and
the exit code is 1. 3 means there is no GPU.

    python benchmarks/gpu_operators.py [--json FILE] [--library libglm_trt_plugins.so] [--jit]

With `--stand-ins` there is no GPU: Triton's interpreter runs what the plugins launch, float32 cases
alone, and nothing is timed.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1" if "--stand-ins" in sys.argv else "0"

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "plugins")]

import torch
from gpu_works import Work, quantized_works, works
from torch import Tensor

from glm_trt.plugins import operators
from glm_trt.plugins.common.aot import dtypes_of
from glm_trt.plugins.common.launch import Launches
from glm_trt.plugins.common.torch_operators import fake
from glm_trt.plugins.folders import CONTRACTS

L2_BYTES = 128 << 20  # no GPU has more
EAGER_TOLERANCE = 2e-2
INDICES_THAT_MAY_DIFFER = 5e-3  # of eager bfloat16 scores, which round to ties


# With it, for compute-sanitizer, each tensor is an allocation, which no graph may hold.
CAN_RECORD = "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ


def missing(a: Tensor, b: Tensor) -> Tensor:
    """Which of a [..., K] are not in b [..., K]."""
    ordered = b.sort(-1).values.contiguous()
    places = torch.searchsorted(ordered, a.contiguous()).clamp(max=b.shape[-1] - 1)
    return ordered.gather(-1, places) != a


class ShippedKernels:
    """The plugins of a library as the function that runs an operator's kernels.

    It takes the place of `glm_trt.plugins.operators.run`, behind `torch.ops.glm_trt`. With
    `poison`, outputs and workspace are NaN in any dtype, and the workspace has exactly its size.
    With `stand_ins` a driver of the tests takes the launches, and an interpreter runs them.
    """

    def __init__(self, library: Path, directory: Path, stand_ins: bool = False) -> None:
        from plugin_harness import Harness

        self._harness = Harness(library, directory, shim=stand_ins)
        self.target = self._harness.targets[0]  # of the library, for stand-ins
        self._built: dict[Any, Any] = {}
        self.poison = False

    def __call__(
        self, launches: Launches, kernels: Any, tensors: Sequence[Tensor | None],
        attributes: dict[str, Any], target: str,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """As `glm_trt.plugins.common.run.run`."""
        from plugin_harness import up_to, without_gaps

        contract = launches.contract
        inputs = without_gaps(contract, list(tensors), attributes)
        absent = [None] * (len(contract.inputs) - len(inputs))
        outputs = fake(contract, *inputs, *absent, **attributes)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        described = up_to(contract, (*inputs, *outputs))
        key = repr((contract.name, described, attributes))
        if key not in self._built:
            self._built[key] = self._harness.build(contract, described, attributes)
        built = self._built[key]
        workspace = torch.empty(built.workspace_bytes, dtype=torch.uint8, device=inputs[0].device)
        if self.poison:
            for tensor in (workspace, *outputs):
                tensor.view(torch.uint8).fill_(0xFF)
        on_gpu = inputs[0].device.type == "cuda"
        stream = torch.cuda.current_stream().cuda_stream if on_gpu else 0
        capability = int(target.removeprefix("sm"))
        self._harness.enqueue(
            built, inputs, outputs, capability, workspace.data_ptr() or None, stream
        )
        return outputs


def check_cases(
    device: str, only: str = "", shipped: ShippedKernels | None = None
) -> tuple[int, list[str]]:
    """Every test case of every operator against its naive reference.

    `only`: a regular expression of the operators' names. `shipped` is for stand-ins: it is called
    itself, in float32 alone. The result is how many were checked, and what is wrong, in words.

    On a GPU the same call recorded in a graph and replayed twice must give the same bytes.
    """
    checked, wrong = 0, []
    for name in CONTRACTS:
        if not re.search(only, name):
            continue
        operator = import_module(f"glm_trt.plugins.{name}.reference")
        launches = import_module(f"glm_trt.plugins.{name}.launch").LAUNCHES
        call = getattr(torch.ops.glm_trt, name)
        if shipped is not None:
            call = partial(call_shipped, shipped, launches)
        for case in import_module(f"glm_trt.plugins.{name}.cases").CASES:
            for dtype in dtypes_of(launches) if shipped is None else ("float32",):
                inputs = case.make(torch.Generator().manual_seed(2), getattr(torch, dtype))
                expected = operator.reference(*inputs, **case.attributes)
                moved = [None if t is None else t.to(device) for t in inputs]
                what = f"{name}, {case.name}, {dtype}"
                checked += 1
                try:
                    found = call(*moved, **case.attributes)
                    problem = compare(found, expected, launches.contract.tolerance[dtype])
                    if not problem and device != "cpu" and CAN_RECORD:
                        problem = replayed_otherwise(
                            partial(call, *moved, **case.attributes), found
                        )
                except (RuntimeError, AssertionError) as error:  # the latter: of the stand-in
                    problem = str(error).strip().splitlines()[0]
                if problem:
                    wrong.append(f"{what}: {problem}")
    return checked, wrong


def call_shipped(
    shipped: ShippedKernels, launches: Launches, *inputs: Any, **attributes: Any
) -> Any:
    """As the operator in `torch.ops`, which runs kernels on GPUs alone."""
    found = shipped(launches, None, inputs, attributes, shipped.target)
    return found if len(found) > 1 else found[0]


def replayed_otherwise(call: Callable[[], Any], found: Any) -> str | None:
    """Whether a recorded call, replayed, gives other bytes than it gave when it was made."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = call()
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (found, again)), strict=True)
    for i, (a, b) in enumerate(pairs):
        if not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
            return f"output {i}: a replayed graph gives other bytes"
    return None


def compare(found: Any, expected: Any, tolerance: float, indices: float = 0.0) -> str | None:
    """What differs between two results (a tensor, or several), or None.

    `indices`: the share of chosen indices that may differ, where scores round to a tie.
    """
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True)
    for i, (a, b) in enumerate(pairs):
        a, b = a.cpu(), b.cpu()
        if not b.dtype.is_floating_point:
            differing = int((missing(a, b) if indices else a != b).sum())
            if differing > indices * b.numel():
                return f"output {i}: {differing} of {b.numel()} indices differ"
        elif not (error := float((a.double() - b.double()).norm())) <= (
            tolerance * float(b.double().norm())
        ):
            return f"output {i}: error {error / max(float(b.double().norm()), 1e-30):.2e}"
    return None


def load_engines(directory: Path, library: Path) -> dict[str, str]:
    """Whether TensorRT-RTX's plans for this GPU load here: plan → "loads", or why not."""
    try:
        import tensorrt_rtx as trt
    except ImportError:
        return {}
    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    runtime.get_plugin_registry().load_library(str(library))
    major, minor = torch.cuda.get_device_capability()
    found = {}
    for plan in sorted(directory.glob(f"engines/tensorrt-rtx/sm{major}{minor}/*/*.plan")):
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        context = None if engine is None else engine.create_execution_context()
        found[str(plan.relative_to(directory))] = "refused" if context is None else "loads"
    return found


def time_of(call: Callable[[], Any], rounds: int = 15) -> float:
    """Median seconds of one call; in a CUDA graph where it can be captured.

    What takes less than a millisecond is recorded ten times, with the L2 cache cleared before each,
    and the time of clearing alone is taken off: a launch of a graph costs as much as a kernel.
    """
    call()
    torch.cuda.synchronize()
    try:
        run = recorded(call, 1)
    except RuntimeError:  # eager experts read indices on the host
        torch.cuda.synchronize()
        return seconds_of(call, rounds)
    alone = seconds_of(run, 3)
    if alone > 1e-3:
        return seconds_of(run, rounds)
    clear = torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda")

    def cold() -> None:
        clear.fill_(0)
        call()

    both, clearing = recorded(cold, 10), recorded(lambda: clear.fill_(0), 10)
    return max(seconds_of(both, rounds) - seconds_of(clearing, rounds), 0) / 10


def recorded(call: Callable[[], Any], times: int) -> Callable[[], None]:
    """A CUDA graph of so many calls."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    return graph.replay


def seconds_of(run: Callable[[], Any], rounds: int) -> float:
    """Median seconds between two events around a run."""
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "se")
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def rates() -> tuple[float, float]:
    """Bytes per second of device memory, and bfloat16 products·2 per second, of this GPU, now.

    The faster of a kernel that only reads and one that reads and writes: in a graph a copy goes by
    the copy engine, which an H200's kernels outrun by half.
    """
    a = torch.randn(1 << 29, device="cuda", dtype=torch.bfloat16)
    b = torch.empty_like(a)
    read = a.nbytes / time_of(lambda: torch.sum(a.view(torch.int64)))
    written = (a.nbytes + b.nbytes) / time_of(lambda: torch.neg(a, out=b))
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return max(read, written), 2 * 8192**3 / time_of(lambda: a @ a)


def measure(work: Work, limits: tuple[float, float], compiled: bool) -> dict[str, Any]:
    """The row of one work: what is wrong with it, or its times in seconds."""
    memory, products = limits
    limit = max(work.bytes / memory, work.products / products)
    row: dict[str, Any] = {"name": work.name, "wrong": None, "limit_s": limit}
    try:
        row["wrong"] = compare(work.ours(), work.theirs(), EAGER_TOLERANCE, INDICES_THAT_MAY_DIFFER)
        if row["wrong"] is None:
            row |= {"ours_s": time_of(work.ours), "eager_s": time_of(work.theirs)}
            if compiled:
                try:
                    torch.compiler.reset()  # else works of one function soon run uncompiled
                    row["compiled_s"] = time_of(torch.compile(work.theirs))
                except Exception as error:  # what torch.compile cannot do is no fault of ours
                    row["compiled_s"] = None
                    print(f"{work.name}: torch.compile: {type(error).__name__}", file=sys.stderr)
    except RuntimeError as error:
        row["wrong"] = str(error).strip().splitlines()[0]
    return row


def line_of(row: dict[str, Any]) -> str:
    """A row of the table."""
    if row["wrong"]:
        return f"{row['name']:<28}WRONG {row['wrong']}"
    ours = row["ours_s"]
    compiled = row.get("compiled_s")
    return (
        f"{row['name']:<28}{ours * 1e6:>9.1f} us{row['eager_s'] / ours:>7.1f}x"
        + (f"{compiled / ours:>8.1f}x" if compiled else f"{'-':>9}")
        + f"{row['limit_s'] / ours:>9.0%}"
    )


def main() -> int:
    """Check, then time; the exit codes are those of `glm-trt`."""
    parser = argparse.ArgumentParser(description="Check and time the kernels on this GPU.")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--library", type=Path,
                        default=ROOT / "build/plugins/libglm_trt_plugins.so")  # fmt: skip
    parser.add_argument("--bundle", type=Path, default=ROOT / "build/glm-5.1-tiny",
                        help="whose engines are loaded, with tensorrt-rtx installed")  # fmt: skip
    parser.add_argument("--jit", action="store_true",
                        help="kernels as this machine's Triton compiles them")  # fmt: skip
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="of operators and of what is timed"
    )
    parser.add_argument("--cases-only", action="store_true", help="no real sizes and no times")
    parser.add_argument("--no-cases", action="store_true", help="real sizes and times alone")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--compile-seconds", type=float, default=1e9, metavar="S",
                        help="after that torch.compile is left out")  # fmt: skip
    parser.add_argument("--stand-ins", action="store_true", help="no GPU: interpreted, no times")
    options = parser.parse_args()
    if not options.stand_ins and not torch.cuda.is_available():
        print("gpu_operators: error: no CUDA device is present", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory() as directory:
        if not options.jit:
            if not options.library.is_file():
                print(
                    f"gpu_operators: error: {options.library}: not there; build it (make plugins), "
                    "or check the kernels as this machine's Triton compiles them: --jit",
                    file=sys.stderr,
                )
                return 2
            shipped = ShippedKernels(options.library, Path(directory), options.stand_ins)
            operators.run = shipped  # type: ignore[assignment]
            shipped.poison = True
        checked, wrong = 0, list[str]()
        if not options.no_cases:
            given = ("cpu", options.only, shipped) if options.stand_ins else ("cuda", options.only)
            checked, wrong = check_cases(*given)
            for problem in wrong:
                print(f"WRONG {problem}")
            print(f"{len(wrong)} of {checked} test cases are wrong", flush=True)
        if not options.jit:
            shipped.poison = False
        result: dict[str, Any] = {"jit": options.jit, "checked": checked, "wrong": wrong}
        if not options.cases_only:
            result |= small_report(options) if options.stand_ins else report(options)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1))
        return int(bool(wrong) or any(row["wrong"] for row in result.get("rows", ())))


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Real sizes: checked, timed and printed."""
    engines = load_engines(options.bundle, options.library)
    for plan, verdict in engines.items():
        print(f"{plan}: {verdict}")
    limits = rates()
    device = torch.cuda.get_device_name()
    print(f"{device}: memory {limits[0] / 1e12:.2f} TB/s, bfloat16 {limits[1] / 1e12:.0f} TFLOP/s")
    print(f"{'bfloat16':<28}{'ours':>12}{'eager':>8}{'compile':>9}{'of limit':>9}")
    rows, ends = [], time.monotonic() + options.compile_seconds
    for work in works(torch.bfloat16):
        if re.search(options.only, work.name):
            compiled = options.compile and time.monotonic() < ends
            rows.append(measure(work, limits, compiled))
            print(line_of(rows[-1]), flush=True)
    versions = {"torch": torch.__version__, "triton": import_module("triton").__version__}
    return {"device": device, "memory_bytes_per_s": limits[0], "products_per_s": limits[1],
            "versions": versions, "engines": engines, "rows": rows}  # fmt: skip


def small_report(options: argparse.Namespace) -> dict[str, Any]:
    """What is timed on a GPU, at small sizes and without times: the works agree with each other."""
    torch.manual_seed(0)
    rows = []
    for work in quantized_works("cpu", torch.float32, (160, 288), (12, 288, 160), (1, 20)):
        if re.search(options.only, work.name):
            rows.append({"name": work.name, "wrong": compare(work.ours(), work.theirs(), 1e-5)})
    return {"rows": rows}


if __name__ == "__main__":
    sys.exit(main())
