"""Every kernel on this machine's GPU: agreement with the references, then times.

Times are medians under CUDA graphs, against eager PyTorch and `torch.compile` on the same tensors,
and as a share of the time that the operator's bytes or products need at the rates measured here.
Quantised operators are timed against dequantising (of experts those hit) and a bfloat16 product.
Nothing is timed where a result is wrong: the exit code is 1. 3 means there is no GPU.

    python benchmarks/gpu_operators.py [--json FILE] [--library libglm_trt_plugins.so]
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "plugins")]

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_trt.model.operators import EagerOperators
from glm_trt.plugins.common.aot import dtypes_of
from glm_trt.plugins.operators import OPERATORS, RegisteredOperators

NAMES = [operator.CONTRACT.torch_name for operator in OPERATORS]
HIDDEN, INNER, EXPERTS, TOP_K = 6144, 2048, 256, 8
EAGER_TOLERANCE = 2e-2
ROUTING = dict(top_k=TOP_K, n_group=1, topk_group=1, norm_topk_prob=True,
               routed_scaling_factor=2.5)  # fmt: skip


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


def check_cases(device: str) -> list[str]:
    """Every test case of every operator against its naive reference; what is wrong, in words."""
    wrong = []
    for name in NAMES:
        operator = import_module(f"glm_trt.plugins.{name}")
        plan = import_module(f"glm_trt.plugins.{name}.plan").PLAN
        for case in import_module(f"glm_trt.plugins.{name}.cases").CASES:
            for dtype in dtypes_of(plan):
                inputs = case.make(torch.Generator().manual_seed(2), getattr(torch, dtype))
                expected = operator.reference(*inputs, **case.attributes)
                call = getattr(torch.ops.glm_trt, name)
                moved = [None if t is None else t.to(device) for t in inputs]
                found = call(*moved, **case.attributes)
                if problem := compare(found, expected, plan.contract.tolerance[dtype]):
                    wrong.append(f"{name}, {case.name}, {dtype}: {problem}")
    return wrong


def compare(found: Any, expected: Any, tolerance: float) -> str | None:
    """What differs between two results (a tensor, or several), or None."""
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True)
    for i, (a, b) in enumerate(pairs):
        a, b = a.cpu(), b.cpu()
        if not b.dtype.is_floating_point:
            if not torch.equal(a, b):
                return f"output {i}: {int((a != b).sum())} of {b.numel()} indices differ"
        elif not (error := float((a.double() - b.double()).norm())) <= (
            tolerance * float(b.double().norm())
        ):
            return f"output {i}: error {error / max(float(b.double().norm()), 1e-30):.2e}"
    return None


def check_library(library: Path) -> list[str]:
    """The plugins' own `enqueue` on device memory against the torch operators, bit for bit."""
    from plugin_harness import Harness, without_gaps

    wrong = []
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as directory:
        harness = Harness(library, Path(directory), shim=False)
        for name in NAMES:
            plan = import_module(f"glm_trt.plugins.{name}.plan").PLAN
            for case in import_module(f"glm_trt.plugins.{name}.cases").CASES:
                inputs = case.make(torch.Generator().manual_seed(2), torch.float32)
                inputs = [tensor.cuda() for tensor in without_gaps(plan.contract, inputs,
                                                                   case.attributes)]  # fmt: skip
                absent = [None] * (len(plan.contract.inputs) - len(inputs))
                call = getattr(torch.ops.glm_trt, name)
                expected = call(*inputs, *absent, **case.attributes)
                expected = expected if isinstance(expected, tuple) else (expected,)
                outputs = [torch.full_like(tensor, -7) for tensor in expected]
                torch.cuda.synchronize()
                harness.run(plan.contract, inputs, case.attributes, outputs, 10 * major + minor)
                torch.cuda.synchronize()
                # Compiled ahead of time and just in time: the same source, other specialisations.
                if problem := compare(tuple(outputs), expected, plan.contract.tolerance["float32"]):
                    wrong.append(f"plugin {name}, {case.name}: {problem}")
    return wrong


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


def time_of(call: Callable[[], Any], rounds: int = 30) -> float:
    """Median seconds of one call, under a CUDA graph where it can be captured."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
        run: Callable[[], Any] = graph.replay
    except RuntimeError:  # eager experts read indices on the host
        torch.cuda.synchronize()
        run = call
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


def main() -> int:
    """Check, then time; the exit codes are those of `glm-trt`."""
    parser = argparse.ArgumentParser(description="Check and time the kernels on this GPU.")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--library", type=Path,
                        default=ROOT / "build/plugins/libglm_trt_plugins.so")  # fmt: skip
    parser.add_argument("--bundle", type=Path, default=ROOT / "build/glm-5.1-tiny",
                        help="whose engines are loaded, with tensorrt-rtx installed")  # fmt: skip
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_operators: error: no CUDA device is present", file=sys.stderr)
        return 3
    wrong = check_cases("cuda")
    if options.library.is_file():
        wrong += check_library(options.library)
    else:
        print(f"{options.library}: not there; its plugins are not checked", file=sys.stderr)
    for problem in wrong:
        print(f"WRONG {problem}")
    if wrong:
        return 1
    engines = load_engines(options.bundle, options.library)
    for plan, verdict in engines.items():
        print(f"{plan}: {verdict}")
    copy, products = rates()
    device = torch.cuda.get_device_name()
    print(f"{device}: copy {copy / 1e12:.2f} TB/s, bfloat16 {products / 1e12:.0f} TFLOP/s")
    print(f"{'bfloat16':<28}{'ours':>10}{'eager':>8}{'compile':>9}{'of limit':>10}")
    rows = []
    for work in works(torch.bfloat16):
        # Where eager PyTorch is of this script, it is checked too: it rounds weights to bfloat16.
        if work.eager and (problem := compare(work.ours(), work.theirs(), EAGER_TOLERANCE)):
            print(f"WRONG {work.name}: {problem}")
            return 1
        ours, eager = time_of(work.ours), time_of(work.theirs)
        compiled = torch.compile(work.theirs)
        try:
            fused = time_of(compiled)
        except Exception as error:  # what torch.compile cannot do is no fault of the kernel
            print(f"{work.name}: torch.compile: {type(error).__name__}", file=sys.stderr)
            fused = float("nan")
        limit = max(work.bytes / copy, work.products / products)
        print(f"{work.name:<28}{ours * 1e6:>7.1f} us{eager / ours:>7.1f}x{fused / ours:>8.1f}x"
              f"{limit / ours:>10.0%}")  # fmt: skip
        row = {"ours_s": ours, "eager_s": eager, "compiled_s": fused, "limit_s": limit}
        rows.append({"name": work.name, **row})
    if options.json:
        versions = {"torch": torch.__version__, "triton": import_module("triton").__version__}
        result = {"device": device, "copy_bytes_per_s": copy, "products_per_s": products,
                  "versions": versions, "engines": engines, "rows": rows}  # fmt: skip
        options.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
