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
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "plugins")]

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_trt.model.operators import EagerOperators
from glm_trt.plugins import operators
from glm_trt.plugins.common.aot import dtypes_of
from glm_trt.plugins.common.launch import Plan
from glm_trt.plugins.operators import OPERATORS, RegisteredOperators

NAMES = [operator.CONTRACT.torch_name for operator in OPERATORS]
L2_BYTES = 128 << 20  # more than any GPU has
HIDDEN, INNER, EXPERTS, TOP_K = 6144, 2048, 256, 8
EAGER_TOLERANCE = 2e-2
INDICES_THAT_MAY_DIFFER = 5e-3  # of eager bfloat16 scores, which round to ties
ROUTING = dict(top_k=TOP_K, n_group=1, topk_group=1, norm_topk_prob=True,
               routed_scaling_factor=2.5)  # fmt: skip


# With it, for compute-sanitizer, each tensor is an allocation, which no graph may hold.
CAN_RECORD = "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ


@dataclass(frozen=True)
class Work:
    """One thing to time: a function of an operator set, with the bytes and products it needs.

    `eager`, where the eager operators have no such function: what it is compared with.
    """

    name: str
    call: Callable[[EagerOperators], Any]
    bytes: float
    products: float = 0.0
    eager: Callable[[], Any] | None = None

    def ours(self) -> Any:
        """The kernels' result."""
        return self.call(RegisteredOperators())

    def theirs(self) -> Any:
        """The result of plain PyTorch."""
        return self.call(EagerOperators()) if self.eager is None else self.eager()


def missing(a: Tensor, b: Tensor) -> Tensor:
    """Which of a [..., K] are not in b [..., K]."""
    ordered = b.sort(-1).values.contiguous()
    places = torch.searchsorted(ordered, a.contiguous()).clamp(max=b.shape[-1] - 1)
    return ordered.gather(-1, places) != a


class ShippedKernels:
    """The plugins of a library as the function that runs an operator's kernels.

    It takes the place of `glm_trt.plugins.operators.run`, behind `torch.ops.glm_trt`. With
    `poison`, outputs and workspace are NaN in any dtype, and the workspace has exactly its size.
    """

    def __init__(self, library: Path, directory: Path) -> None:
        from plugin_harness import Harness

        self._harness = Harness(library, directory, shim=False)
        self._built: dict[Any, Any] = {}
        self.poison = False

    def __call__(
        self, plan: Plan, kernels: Any, tensors: Sequence[Tensor | None],
        attributes: dict[str, Any], target: str,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """As `glm_trt.plugins.common.launch.run`."""
        from plugin_harness import up_to, without_gaps

        contract = plan.contract
        inputs = without_gaps(contract, list(tensors), attributes)
        absent = [None] * (len(contract.inputs) - len(inputs))
        outputs = contract.fake(*inputs, *absent, **attributes)
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
        stream = torch.cuda.current_stream().cuda_stream
        capability = int(target.removeprefix("sm"))
        self._harness.enqueue(
            built, inputs, outputs, capability, workspace.data_ptr() or None, stream
        )
        return outputs


def check_cases(device: str, only: str = "") -> list[str]:
    """Every test case of every operator against its naive reference; what is wrong, in words.

    `only`: a regular expression of the operators' names.

    On a GPU the same call recorded in a graph and replayed twice must give the same bytes.
    """
    wrong = []
    for name in NAMES:
        if not re.search(only, name):
            continue
        operator = import_module(f"glm_trt.plugins.{name}")
        plan = import_module(f"glm_trt.plugins.{name}.plan").PLAN
        for case in import_module(f"glm_trt.plugins.{name}.cases").CASES:
            for dtype in dtypes_of(plan):
                inputs = case.make(torch.Generator().manual_seed(2), getattr(torch, dtype))
                expected = operator.reference(*inputs, **case.attributes)
                call = getattr(torch.ops.glm_trt, name)
                moved = [None if t is None else t.to(device) for t in inputs]
                what = f"{name}, {case.name}, {dtype}"
                try:
                    found = call(*moved, **case.attributes)
                    problem = compare(found, expected, plan.contract.tolerance[dtype])
                    if (
                        not problem
                        and device != "cpu"
                        and "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ
                    ):
                        problem = replayed_otherwise(
                            partial(call, *moved, **case.attributes), found
                        )
                except RuntimeError as error:
                    problem = str(error).strip().splitlines()[0]
                if problem:
                    wrong.append(f"{what}: {problem}")
    return wrong


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


def works(dtype: torch.dtype) -> list[Work]:
    """GLM-5.1's operators at its dimensions."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    found = []
    bias = torch.zeros(EXPERTS, device="cuda")
    for tokens in (1, 64, 8192):
        logits = torch.randn(tokens, EXPERTS, device="cuda")
        found.append(Work(f"routing, {tokens} tokens", lambda o, x=logits:
                          o.moe_routing(x, bias, **ROUTING), tokens * EXPERTS * 4))  # fmt: skip
    gate_up, down = random(EXPERTS, 2 * INNER, HIDDEN) / 80, random(EXPERTS, HIDDEN, INNER) / 45
    for tokens in (1, 8, 64, 8192):
        x = random(tokens, HIDDEN)
        indices = torch.rand(tokens, EXPERTS, device="cuda").topk(TOP_K).indices.int()
        weights = torch.rand(tokens, TOP_K, device="cuda")
        hit = int(indices.unique().numel())
        found.append(Work(
            f"experts, {tokens} tokens",
            lambda o, x=x, i=indices, w=weights: o.moe_experts(x, i, w, gate_up, down),
            hit * 3 * HIDDEN * INNER * dtype.itemsize, 6.0 * tokens * TOP_K * HIDDEN * INNER,
        ))  # fmt: skip
    for batch, context in ((1, 8192), (1, 131072), (8, 131072)):
        query, keys = random(batch, 1, 32, 128), random(batch, 1, context, 128)
        head_weights = torch.rand(batch, 1, 32, device="cuda")
        past = torch.full((batch,), context - 1, device="cuda")
        found.append(Work(
            f"indexer, {batch} x {context}",
            lambda o, q=query, k=keys, w=head_weights, p=past: o.indexer_topk(
                q, k, w, p, index_topk=2048, scale=128**-0.5),
            batch * context * 128 * dtype.itemsize,
        ))  # fmt: skip
        cache = random(batch, 1, context, 576)
        chosen = torch.rand(batch, 1, context, device="cuda").topk(2048).indices.sort().values.int()
        heads = random(batch, 1, 64, 576)
        found.append(Work(
            f"attention, {batch} x {context}",
            lambda o, q=heads, c=cache, i=chosen: o.sparse_mla(
                q, c, i, scale=1 / 16, value_width=512),
            batch * 2048 * 576 * dtype.itemsize,
        ))  # fmt: skip
        found.append(Work(
            f"causal, {batch} x {context}",
            lambda o, q=heads, c=cache, p=past: o.causal_mla(
                q, c, p, scale=1 / 16, value_width=512),
            batch * context * 576 * dtype.itemsize, 2.0 * batch * context * 64 * (576 + 512),
        ))  # fmt: skip
    for length in (64, 512, 2048):
        context = 8192
        past = torch.full((1,), context - length, device="cuda")
        query, keys = random(1, length, 32, 128), random(1, 1, context, 128)
        head_weights = torch.rand(1, length, 32, device="cuda")
        found.append(Work(
            f"indexer, {length} of {context}",
            lambda o, q=query, k=keys, w=head_weights, p=past: o.indexer_topk(
                q, k, w, p, index_topk=2048, scale=128**-0.5),
            context * 128 * dtype.itemsize, 2.0 * length * context * 32 * 128,
        ))  # fmt: skip
        cache, heads = random(1, 1, context, 576), random(1, length, 64, 576)
        seen = torch.rand(1, length, context - length, device="cuda")
        chosen = seen.topk(2048).indices.sort().values.int()
        found.append(Work(
            f"attention, {length} of {context}",
            lambda o, q=heads, c=cache, i=chosen: o.sparse_mla(
                q, c, i, scale=1 / 16, value_width=512),
            context * 576 * dtype.itemsize, 2.0 * length * 2048 * 64 * (576 + 512),
        ))  # fmt: skip
        found.append(Work(
            f"causal, {length} of {context}",
            lambda o, q=heads, c=cache, p=past: o.causal_mla(
                q, c, p, scale=1 / 16, value_width=512),
            context * 576 * dtype.itemsize,
            2.0 * length * (context - length / 2) * 64 * (576 + 512),
        ))  # fmt: skip
    return found + linear_works(random) + quantized_works("cuda", dtype)


def linear_works(random: Callable[..., Tensor]) -> list[Work]:
    """Linear attention and its convolution, 64 heads of 128 and 16 key heads."""
    found = []
    for batch, length in ((1, 1), (64, 1), (1, 1024), (1, 8192)):
        query, key, value = (random(batch, length, 64 * 128) / 12 for _ in "qkv")
        state = torch.randn(batch, 64, 128, 128, device="cuda")
        decay = -torch.rand(batch, length, 64, device="cuda").to(query.dtype)
        beta = torch.rand(batch, length, 64, device="cuda").to(query.dtype)
        found.append(Work(
            f"linear, {batch} x {length}",
            lambda o, t=(query, key, value, state, decay, beta): o.linear_attention(
                *t, q_num_heads=64, kv_num_heads=64, update_rule="gated_delta", scale=128**-0.5),
            2 * state.nbytes + 4 * query.nbytes, 6.0 * batch * length * 64 * 128 * 128,
        ))  # fmt: skip
        x, kernel = random(batch, 12288, length), random(12288, 1, 4)
        columns = random(batch, 12288, 3)
        found.append(Work(
            f"convolution, {batch} x {length}",
            lambda o, t=(x, kernel, columns): o.causal_conv_with_state(*t, activation="silu"),
            2 * x.nbytes + 2 * columns.nbytes,
        ))  # fmt: skip
    return found


def dense_fp8(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """codes int8 [out, in], scale float32 [⌈out/128⌉, ⌈in/128⌉] → [out, in] on their device."""
    rows, columns = codes.shape
    wide = scale.to(dtype).repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return codes.view(torch.float8_e4m3fn).to(dtype) * wide


def dense_nvfp4(codes: Tensor, scale: Tensor, overall: Tensor, dtype: torch.dtype) -> Tensor:
    """codes int8 [out, in/2], scale int8 [out, in/16], overall [] → [out, in] on their device."""
    sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=dtype, device=codes.device)
    pairs = torch.stack([codes & 15, (codes >> 4) & 15], -1).flatten(-2).long()
    values = torch.where(pairs > 7, -sizes[pairs & 7], sizes[pairs & 7])
    factors = (scale.view(torch.float8_e4m3fn).float() * overall).to(dtype)
    return values * factors.repeat_interleave(16, 1)


def dense_tokens(x: Tensor) -> Tensor:
    """x [T, in] as e4m3 with a scale for each 128, in x's dtype again."""
    groups = F.pad(x, (0, -x.shape[1] % 128)).float().unflatten(1, (-1, 128))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448
    rounded = (groups / scale).to(torch.float8_e4m3fn).float() * scale
    return rounded.flatten(1)[:, : x.shape[1]].to(x.dtype)


def eager_experts(
    x: Tensor, indices: Tensor, weights: Tensor, dense: Callable[[int], tuple[Tensor, Tensor]]
) -> Tensor:
    """x [T, hidden] → [T, hidden]; `dense` gives an expert's gate and up [2I, hidden], and down."""
    y = torch.zeros_like(x, dtype=torch.float32)
    for expert in indices.unique().tolist():
        token, slot = torch.where(indices == expert)
        gate_up, down = dense(expert)
        gate, up = F.linear(x[token], gate_up).chunk(2, -1)
        part = F.linear(F.silu(gate) * up, down).float()
        y.index_add_(0, token, part * weights[token, slot].unsqueeze(1))
    return y.to(x.dtype)


def quantized_works(
    device: str,
    dtype: torch.dtype,
    attention: tuple[int, int] = (HIDDEN, 64 * 256),
    experts: tuple[int, int, int] = (EXPERTS, HIDDEN, INNER),
    tokens: tuple[int, ...] = (1, 8, 64, 8192),
) -> list[Work]:
    """The operators of FP8 and NVFP4 weights: `o_proj` [out, in], and a layer's experts."""
    ops = torch.ops.glm_trt
    (rows, columns), (count, hidden, inner) = attention, experts
    top_k = min(TOP_K, count)

    def fp8(*shape: int) -> tuple[Tensor, Tensor]:
        codes = torch.randint(-128, 127, shape, dtype=torch.int8, device=device)
        codes.masked_fill_(codes == -1, 0)  # 127 and -1 are NaN
        blocks = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
        return codes, (torch.rand(blocks, device=device) + 0.5) / (150 * shape[-1] ** 0.5)

    def nvfp4(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
        codes = torch.randint(-128, 128, (*shape[:-1], shape[-1] // 2), dtype=torch.int8,
                              device=device)  # fmt: skip
        scale = torch.randint(
            0x68, 0x7D, (*shape[:-1], shape[-1] // 16), dtype=torch.int8, device=device
        )  # fmt: skip  64 to 416
        return codes, scale, (torch.rand(shape[:-2], device=device) + 0.5) / (
            600 * shape[-1] ** 0.5)  # fmt: skip

    w8, s8 = fp8(rows, columns)
    w4, s4, g4 = nvfp4(rows, columns)
    up8, up_s8 = fp8(count, 2, inner, hidden)
    down8, down_s8 = fp8(count, hidden, inner)
    up4, up_s4, up_g4 = nvfp4(count, 2, inner, hidden)
    down4, down_s4, down_g4 = nvfp4(count, hidden, inner)
    all8 = (up8.flatten(1, 2), up_s8, down8, down_s8)
    all4 = (up4.flatten(1, 2), up_s4.flatten(1, 2), up_g4, down4, down_s4, down_g4)

    def dense8(e: int) -> tuple[Tensor, Tensor]:
        both = torch.cat([dense_fp8(up8[e, i], up_s8[e, i], dtype) for i in (0, 1)])
        return both, dense_fp8(down8[e], down_s8[e], dtype)

    def dense4(e: int) -> tuple[Tensor, Tensor]:
        both = [dense_nvfp4(up4[e, i], up_s4[e, i], up_g4[e, i], dtype) for i in (0, 1)]
        return torch.cat(both), dense_nvfp4(down4[e], down_s4[e], down_g4[e], dtype)

    found = []
    for t in tokens:
        x = torch.randn(t, columns, device=device).to(dtype)
        moved = (t * (rows + columns)) * dtype.itemsize
        bytes8, bytes4 = (sum(a.nbytes for a in part) + moved for part in ((w8, s8), (w4, s4)))
        work = 2.0 * t * rows * columns
        found += [
            Work(f"fp8, {t} tokens", lambda _, x=x: ops.fp8_linear(
                x, w8, s8, quantize_activations=0), bytes8, work,
                lambda x=x: F.linear(x, dense_fp8(w8, s8, dtype))),
            Work(f"fp8, quantised, {t} tokens", lambda _, x=x: ops.fp8_linear(
                x, w8, s8, quantize_activations=1), bytes8, work,
                lambda x=x: F.linear(dense_tokens(x), dense_fp8(w8, s8, dtype))),
            Work(f"nvfp4, {t} tokens", lambda _, x=x: ops.nvfp4_linear(x, w4, s4, g4.view(1)),
                 bytes4, work, lambda x=x: F.linear(x, dense_nvfp4(w4, s4, g4, dtype))),
        ]  # fmt: skip
        x = torch.randn(t, hidden, device=device).to(dtype)
        indices = torch.rand(t, count, device=device).topk(top_k).indices.int()
        weights = torch.rand(t, top_k, device=device)
        hit, moved = int(indices.unique().numel()), 2 * t * hidden * dtype.itemsize
        bytes8, bytes4 = (
            hit * sum(a.nbytes for a in part) / count + moved for part in (all8, all4)
        )
        work, routed = 6.0 * t * top_k * hidden * inner, (x, indices, weights)
        found += [
            Work(f"fp8 experts, {t} tokens", lambda _, r=routed: ops.fp8_moe_experts(*r, *all8),
                 bytes8, work, lambda r=routed: eager_experts(*r, dense8)),
            Work(f"nvfp4 experts, {t} tokens", lambda _, r=routed: ops.nvfp4_moe_experts(*r, *all4),
                 bytes4, work, lambda r=routed: eager_experts(*r, dense4)),
        ]  # fmt: skip
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
    """Bytes per second read by a copy, and bfloat16 products·2 per second, of this GPU, now."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() / time_of(lambda: target.copy_(source))
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return copy, 2 * 8192**3 / time_of(lambda: a @ a)


def measure(work: Work, limits: tuple[float, float], compiled: bool) -> dict[str, Any]:
    """The row of one work: what is wrong with it, or its times in seconds."""
    copy, products = limits
    row: dict[str, Any] = {"name": work.name, "wrong": None,
                           "limit_s": max(work.bytes / copy, work.products / products)}  # fmt: skip
    try:
        row["wrong"] = compare(work.ours(), work.theirs(), EAGER_TOLERANCE, INDICES_THAT_MAY_DIFFER)
        if row["wrong"] is None:
            row |= {"ours_s": time_of(work.ours), "eager_s": time_of(work.theirs)}
            if compiled:
                try:
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
    options = parser.parse_args()
    if not torch.cuda.is_available():
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
            shipped = ShippedKernels(options.library, Path(directory))
            operators.run = shipped  # type: ignore[assignment]
            shipped.poison = True
        wrong = [] if options.no_cases else check_cases("cuda", options.only)
        for problem in wrong:
            print(f"WRONG {problem}")
        if not options.jit:
            shipped.poison = False
        if not options.no_cases:
            print(f"{len(wrong)} test cases are wrong", flush=True)
        return ((bool(wrong) or (not options.cases_only and report(options, wrong))) and 1) or 0


def report(options: argparse.Namespace, wrong: list[str]) -> bool:
    """Real sizes: checked, timed, printed and written. Whether something is wrong."""
    engines = load_engines(options.bundle, options.library)
    for plan, verdict in engines.items():
        print(f"{plan}: {verdict}")
    limits = rates()
    device = torch.cuda.get_device_name()
    print(f"{device}: copy {limits[0] / 1e12:.2f} TB/s, bfloat16 {limits[1] / 1e12:.0f} TFLOP/s")
    print(f"{'bfloat16':<28}{'ours':>12}{'eager':>8}{'compile':>9}{'of limit':>9}")
    rows = []
    for work in works(torch.bfloat16):
        if re.search(options.only, work.name):
            rows.append(measure(work, limits, options.compile))
            print(line_of(rows[-1]), flush=True)
    if options.json:
        versions = {"torch": torch.__version__, "triton": import_module("triton").__version__}
        result = {"device": device, "copy_bytes_per_s": limits[0], "products_per_s": limits[1],
                  "versions": versions, "jit": options.jit, "wrong": wrong, "engines": engines,
                  "rows": rows}  # fmt: skip
        options.json.write_text(json.dumps(result, indent=1))
    return any(row["wrong"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
