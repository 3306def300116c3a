"""FP8 and NVFP4: what the bytes mean, by other code than ours, and what the kernels promise.

test_kernels.py runs every case against the reference, between guards and twice.
"""

from __future__ import annotations

import itertools
import os
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import ml_dtypes
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from plugin_harness import coarse, compiled_kernels, mostly_slow
from test_onnx_bodies import run as run_body
from torch import Tensor

from glm_trt.model import dequantize
from glm_trt.model.checkpoint.stored_weights import E4M3_OF_BYTE
from glm_trt.model.operators import Product, sum_experts
from glm_trt.plugins.common.aot import dtypes_of
from glm_trt.plugins.common.cases import fp8_weight, nvfp4_weight
from glm_trt.plugins.common.expressions import evaluate
from glm_trt.plugins.common.formats import e2m1_pairs, e4m3, round_to_e4m3
from glm_trt.plugins.common.quantized_launches import PAIR_ROWS
from glm_trt.plugins.common.run import run
from glm_trt.plugins.common.selection import TARGETS
from glm_trt.plugins.common.torch_operators import fake
from glm_trt.plugins.folders import CONTRACTS
from glm_trt.plugins.library import selection_of

LINEAR, EXPERTS = ("fp8_linear", "nvfp4_linear"), ("fp8_moe_experts", "nvfp4_moe_experts")
BYTES = torch.arange(256, dtype=torch.uint8).view(torch.int8)
LAUNCHES_OF = {
    name: import_module(f"glm_trt.plugins.{name}.launch").LAUNCHES for name in LINEAR + EXPERTS
}
KERNELS = {n: vars(import_module(f"glm_trt.plugins.{n}.kernel")) for n in LINEAR + EXPERTS}
CASES = {n: import_module(f"glm_trt.plugins.{n}.cases").CASES for n in LINEAR + EXPERTS}
PLAIN, QUANTIZED = {"quantize_activations": 0}, {"quantize_activations": 1}


def call(name: str, inputs: list[Tensor], attributes: Any = None, target: str = "sm90") -> Tensor:
    (found,) = run(LAUNCHES_OF[name], KERNELS[name], inputs, attributes or {}, target)
    return found


def case_of(name: str, label: str, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, int]]:
    (case,) = [case for case in CASES[name] if case.name == label]
    return case.make(torch.Generator().manual_seed(2), dtype), case.attributes


def error_of(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@triton.jit
def decode_kernel(p_bytes, p_e4m3, p_e2m1, HARDWARE: tl.constexpr):
    o = tl.arange(0, 256)
    b_bytes = tl.load(p_bytes + o)
    tl.store(p_e4m3 + o, e4m3(b_bytes, HARDWARE))
    b_low, b_high = e2m1_pairs(b_bytes)
    tl.store(p_e2m1 + 2 * o, b_low)
    tl.store(p_e2m1 + 2 * o + 1, b_high)


@triton.jit
def round_kernel(p_x, p_y, COUNT: tl.constexpr):
    o = tl.arange(0, COUNT)
    tl.store(p_y + o, round_to_e4m3(tl.load(p_x + o)))


@pytest.mark.parametrize("hardware", [False, True])
def test_every_code_is_decoded(hardware: bool) -> None:
    ours, pairs = torch.empty(256, dtype=torch.float16), torch.empty(256, 2, dtype=torch.float16)
    decode_kernel[(1,)](BYTES, ours, pairs, hardware)
    fp8 = BYTES.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    for found in (ours, dequantize.e4m3_values(BYTES), torch.from_numpy(E4M3_OF_BYTE)):
        assert np.array_equal(found.float().numpy(), fp8, equal_nan=True)
        signs = np.signbit(found.float().numpy())
        assert np.array_equal(signs[~np.isnan(fp8)], np.signbit(fp8)[~np.isnan(fp8)])
    assert torch.equal(ours[:127], BYTES[:127].view(torch.float8_e4m3fn).half())
    assert np.isnan(fp8).sum() == 2
    codes = np.stack([np.arange(256) & 15, np.arange(256) >> 4], 1).astype(np.uint8)
    fp4 = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    ones = torch.full((32, 1), 0x38, dtype=torch.int8)
    naive = dequantize.dequantize_nvfp4(BYTES.view(32, 8), ones, torch.tensor(1.0))
    for found in (pairs.float().numpy(), naive.numpy().reshape(256, 2)):
        assert np.array_equal(found, fp4)
        assert np.array_equal(np.signbit(found), np.signbit(fp4))


def test_rounding_to_e4m3_is_that_of_torch() -> None:
    finite = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (finite[1:] + finite[:-1]) / 2
    near = [ties, ties.nextafter(torch.tensor(0.0)), ties.nextafter(torch.tensor(448.0))]
    rest = [torch.tensor([1e-10, 2.0**-126, float("nan")]), torch.rand(100) / 64]
    x = torch.cat([finite, *near, *rest])
    x = torch.cat([x, torch.rand(4096 - len(x)) * 448])
    x = torch.cat([x, -x])
    found = torch.empty_like(x)
    round_kernel[(1,)](x, found, len(x))
    wanted = x.to(torch.float8_e4m3fn).float()
    assert torch.equal(found.nan_to_num(999), wanted.nan_to_num(999))


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """As published checkpoints are made: each block's largest value becomes 448."""
    rows, columns = weight.shape
    scale = torch.empty(-(-rows // 128), -(-columns // 128))
    codes = torch.empty(rows, columns, dtype=torch.int8)
    for i, j in itertools.product(range(scale.shape[0]), range(scale.shape[1])):
        block = weight[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
        scale[i, j] = block.abs().max() / 448
        codes[128 * i : 128 * i + 128, 128 * j : 128 * j + 128] = (
            (block / scale[i, j]).to(torch.float8_e4m3fn).view(torch.int8)
        )
    return codes, scale


def quantize_nvfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By the published formula: largest / (6 · 448) for all, largest / 6 of 16, then e2m1."""
    rows, columns = weight.shape
    overall = weight.abs().max() / (6 * 448)
    groups = weight.view(rows, columns // 16, 16)
    scale = (groups.abs().amax(-1) / 6 / overall).to(torch.float8_e4m3fn)
    ratios = groups / (scale.float() * overall).unsqueeze(-1)
    codes = ratios.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    codes = codes.reshape(rows, columns // 2, 2)
    packed = torch.from_numpy(codes[..., 0] | codes[..., 1] << 4)
    return packed.view(torch.int8), scale.view(torch.int8), overall.view(1)


@pytest.mark.parametrize("tokens", [2, 20])
@pytest.mark.parametrize("shape", [(576, 144), (130, 200), (128, 256), (3, 17)])
def test_fp8_weights_of_a_checkpoint(shape: tuple[int, int], tokens: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(shape) * torch.rand(shape[0], 1), torch.randn(tokens, shape[1])
    codes, scale = quantize_fp8(weight)
    assert scale.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    exact = codes.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    for i, j in np.ndindex(*shape):
        exact[i, j] *= float(scale[i // 128, j // 128])
    wanted = x.double() @ torch.from_numpy(exact).T
    for found in (
        call("fp8_linear", [x, codes, scale], PLAIN),
        torch.ops.glm_trt.fp8_linear(x, codes, scale, **PLAIN),
    ):
        assert error_of(found, wanted) < 1e-6
        assert error_of(found, x @ weight.T) < 0.05  # three bits of mantissa


@pytest.mark.parametrize("tokens", [2, 20])
@pytest.mark.parametrize("shape", [(576, 96), (130, 160), (3, 32)])
def test_nvfp4_weights_of_a_checkpoint(shape: tuple[int, int], tokens: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(shape) * torch.rand(shape[0], 1), torch.randn(tokens, shape[1])
    codes, scale, overall = quantize_nvfp4(weight)
    nibbles = np.stack([codes.numpy() & 15, codes.numpy().view(np.uint8) >> 4], -1).reshape(shape)
    exact = nibbles.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    exact *= scale.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64).repeat(16, 1)
    wanted = x.double() @ torch.from_numpy(exact).T * overall.double()
    for found in (
        call("nvfp4_linear", [x, codes, scale, overall]),
        torch.ops.glm_trt.nvfp4_linear(x, codes, scale, overall),
    ):
        assert error_of(found, wanted) < 1e-6
        assert error_of(found, x @ weight.T) < 0.2  # one bit of mantissa


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("columns", [256, 200, 304])
def test_quantised_activations_by_float64(tokens: int, columns: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(tokens, columns) * 10.0 ** torch.randn(tokens, 1)
    x[0, :128] = 0  # a group of nothing is not divided by nothing
    codes, scale = fp8_weight(torch.Generator().manual_seed(0), 140, columns)
    wanted = np.zeros((tokens, 140))
    weight = codes.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    for first in range(0, columns, 128):
        group = x[:, first : first + 128].numpy()
        s = np.maximum(np.abs(group).max(1, keepdims=True), np.float32(1e-10)) / np.float32(448)
        rounded = (group / s).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
        rows = scale[:, first // 128].double().numpy().repeat(128)[:140]
        wanted += rounded @ weight[:, first : first + 128].T * rows * s.astype(np.float64)
    for found in (
        call("fp8_linear", [x, codes, scale], QUANTIZED),
        torch.ops.glm_trt.fp8_linear(x, codes, scale, **QUANTIZED),
    ):
        assert error_of(found, torch.from_numpy(wanted)) < 1e-6
        plain = torch.ops.glm_trt.fp8_linear(x, codes, scale, **PLAIN)
        assert 1e-3 < error_of(found, plain) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target", ["sm80", "sm90"])
def test_every_code_reaches_the_sums_as_it_is(target: str, dtype: torch.dtype) -> None:
    """One input is 1 and the others 0: outputs are weights. Rows, and tiles."""
    for tokens in (1, 16):
        x = torch.eye(16, dtype=dtype)[:tokens]
        codes = BYTES.view(16, 16).T.contiguous()  # NaN is in the last row: the last output
        found = call("fp8_linear", [x, codes, torch.ones(1, 1)], PLAIN, target)
        wanted = codes.view(torch.float8_e4m3fn).float().T[:tokens]
        assert torch.equal(found[:, :15].float(), wanted[:, :15])
        assert bool(found[:, 15].isnan().all())
        x = torch.eye(32, dtype=dtype)[:tokens]
        codes = BYTES.view(16, 16)
        ones = torch.full((16, 2), 0x38, dtype=torch.int8)
        found = call("nvfp4_linear", [x, codes, ones, torch.ones(1)], None, target)
        wanted = dequantize.dequantize_nvfp4(codes, ones, torch.tensor(1.0)).T[:tokens]
        assert torch.equal(found.float(), wanted)


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(n, c, id=f"{n}-{c.name}") for n in LINEAR + EXPERTS for c in CASES[n]],
)
def test_bodies_and_fakes(name: str, case: Any) -> None:
    inputs = case.make(torch.Generator().manual_seed(4), torch.float32)
    expected = getattr(torch.ops.glm_trt, name)(*inputs, **case.attributes)
    (found,) = run_body(name, inputs, case.attributes)
    faked = fake(CONTRACTS[name], *inputs, **case.attributes)
    for other in (found, faked):
        assert (other.dtype, other.shape) == (expected.dtype, expected.shape)
    if expected.numel():
        assert error_of(found, expected) < CONTRACTS[name].tolerance["float32"]


@pytest.mark.parametrize("target", mostly_slow(TARGETS, "sm80", "sm90"))
@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("fp8_linear", "17 tokens, plain"),
        ("fp8_linear", "513 tokens, quantised"),
        ("nvfp4_linear", "513 tokens"),
        ("fp8_moe_experts", "tiles of 64"),
        ("fp8_moe_experts", "tiles of 128"),
        ("nvfp4_moe_experts", "tiles of 128"),
    ],
)
def test_tiles_of_every_target(name: str, label: str, target: str) -> None:
    inputs, attributes = case_of(name, label, torch.bfloat16)
    found = call(name, inputs, attributes, target)
    wanted = getattr(torch.ops.glm_trt, name)(*inputs, **attributes)
    assert error_of(found, wanted) <= CONTRACTS[name].tolerance["bfloat16"]


def between_guards(tensor: Tensor) -> Tensor:
    """The same between NaN codes; between zeros, which name an expert, for indices."""
    fill = {torch.int32: 0, torch.int8: 127}.get(tensor.dtype, float("nan"))
    whole = torch.full((tensor.numel() + 8192,), fill, dtype=tensor.dtype)
    whole[4096 : 4096 + tensor.numel()] = tensor.flatten()
    return whole[4096 : 4096 + tensor.numel()].view(tensor.shape)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("fp8_linear", "one token, plain"),
        ("fp8_linear", "odd sizes, quantised"),
        ("fp8_linear", "576 rows, plain"),
        ("fp8_linear", "17 tokens, quantised"),
        ("nvfp4_linear", "one token"),
        ("nvfp4_linear", "17 tokens"),
        ("fp8_moe_experts", "few, partial blocks"),
        ("fp8_moe_experts", "17 tokens, odd sizes"),
        ("fp8_moe_experts", "17 tokens"),
        ("nvfp4_moe_experts", "one token"),
        ("nvfp4_moe_experts", "17 tokens"),
    ],
)
def test_nothing_is_read_beyond_an_input(name: str, label: str) -> None:
    inputs, attributes = case_of(name, label, torch.float16)
    found = call(name, [between_guards(tensor) for tensor in inputs], attributes)
    wanted = getattr(torch.ops.glm_trt, name)(*inputs, **attributes)
    assert error_of(found, wanted) <= CONTRACTS[name].tolerance["float16"]  # NaN if one was read


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("tokens", [3, 20])
def test_experts_that_are_not_hit_are_not_read(name: str, tokens: int) -> None:
    (case,) = [case for case in CASES[name] if case.name == "one expert hit"]
    inputs = case.make(torch.Generator().manual_seed(2), torch.float16)
    inputs[:3] = [tensor[:tokens].clone() for tensor in inputs[:3]]
    (expert,) = inputs[1].unique().tolist()
    expected = getattr(torch.ops.glm_trt, name)(*inputs)
    for tensor in inputs[3:]:
        others = torch.arange(len(tensor)) != expert
        tensor[others] = 127 if tensor.dtype == torch.int8 else float("nan")
    assert torch.equal(getattr(torch.ops.glm_trt, name)(*inputs), expected)
    assert error_of(call(name, inputs), expected) <= CONTRACTS[name].tolerance["float16"]


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("tokens", [3, 20])
def test_an_expert_that_a_token_has_twice_counts_twice(name: str, tokens: int) -> None:
    inputs, _ = case_of(name, "tiles of 64", torch.float32)
    x, weights = torch.randn(tokens, inputs[0].shape[1]), torch.rand(tokens, 3)
    indices = torch.tensor([2, 1, 2], dtype=torch.int32).repeat(tokens, 1)
    once = torch.stack([weights[:, 1], weights[:, 0] + weights[:, 2]], 1)
    wanted = getattr(torch.ops.glm_trt, name)(x, indices[:, 1:].contiguous(), once, *inputs[3:])
    again = getattr(torch.ops.glm_trt, name)(x, indices, weights, *inputs[3:])
    for found in (again, call(name, [x, indices, weights, *inputs[3:]])):
        assert error_of(found, wanted) <= CONTRACTS[name].tolerance["float32"]


@pytest.mark.parametrize("code", [127, -1])
@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("name", LINEAR)
def test_nan_of_either_sign_is_nan_everywhere(name: str, tokens: int, code: int) -> None:
    """In the weight of FP8 and in a scale of NVFP4; in its own output alone."""
    label = "odd sizes, plain" if name == "fp8_linear" else "576 rows"
    inputs, attributes = case_of(name, label, torch.float32)
    inputs[0] = torch.randn(tokens, inputs[0].shape[1])
    rows = 40
    inputs[1] = inputs[1][:rows].clone()
    inputs[2] = inputs[2][: 1 if name == "fp8_linear" else rows].clone()
    inputs[1 if name == "fp8_linear" else 2][3, 1] = code
    (body,) = run_body(name, inputs, attributes)
    reference = getattr(torch.ops.glm_trt, name)(*inputs, **attributes)
    expected = torch.arange(inputs[1].shape[0]).expand(tokens, -1) == 3
    for found in (reference, body, call(name, inputs, attributes, "sm80"),
                  call(name, inputs, attributes)):  # fmt: skip
        assert torch.equal(found.isnan(), expected)


def test_the_reference_asks_for_one_hit_expert_at_a_time() -> None:
    asked = []

    def experts(expert: int) -> tuple[Product, Product]:
        asked.append(expert)
        return lambda x: x @ torch.ones(4, 6), lambda x: x @ torch.ones(3, 4)

    indices = torch.tensor([[7, 2], [2, 9]], dtype=torch.int32)
    y = sum_experts(torch.ones(2, 4), indices, torch.ones(2, 2), experts)
    assert asked == [2, 7, 9]
    assert torch.allclose(y, torch.full((2, 4), 2 * 3 * 16 * torch.tensor(4.0).sigmoid().item()))


def sparse_file(path: Path, count: int, last: Tensor) -> Tensor:
    """`count` of `last` [1, …] in a file that has pages for the last of them only."""
    shape = (count, *last.shape[1:])
    size = int(torch.Size(shape).numel())
    whole = torch.from_file(str(path), shared=True, size=size, dtype=last.dtype).view(shape)
    whole[-1] = last[0]
    return whole


@pytest.mark.parametrize(("name", "tokens"), [(EXPERTS[0], 1), (EXPERTS[0], 17), (EXPERTS[1], 1)])
def test_addresses_beyond_32_bits(name: str, tokens: int, tmp_path: Path) -> None:
    """The last expert's file is sparse: only that one has pages."""
    experts, hidden, inner = 512, 2080, 2080 if name.startswith("nvfp4") else 1056
    generator = torch.Generator().manual_seed(0)
    make = fp8_weight if name == "fp8_moe_experts" else nvfp4_weight
    first = make(generator, 1, 2, inner, hidden)
    second = make(generator, 1, hidden, inner)
    flattened = [first[0].flatten(1, 2), *first[1:], *second]
    if name == "nvfp4_moe_experts":
        flattened[1] = flattened[1].flatten(1, 2)

    weights = [sparse_file(tmp_path / str(i), experts, last) for i, last in enumerate(flattened)]
    assert weights[0].numel() > 2**31
    x = torch.randn(tokens, hidden, generator=generator).half()
    indices = torch.full((tokens, 1), experts - 1, dtype=torch.int32)
    inputs = [x, indices, torch.ones(tokens, 1), *weights]
    wanted = getattr(torch.ops.glm_trt, name)(*inputs)
    (found,) = run(coarse(LAUNCHES_OF[name]), KERNELS[name], inputs, {}, "sm90")
    assert error_of(found, wanted) <= CONTRACTS[name].tolerance["float16"]


@pytest.mark.parametrize("kernel", ["nvfp4_gate_up_tiles", "nvfp4_down_tiles"])
def test_addresses_of_nvfp4_tiles_beyond_32_bits(kernel: str, tmp_path: Path) -> None:
    """One program alone, of the last expert: all of them take minutes here."""
    experts, tokens, columns = 512, 16, 64
    generator = torch.Generator().manual_seed(0)
    halves = 2 if kernel == "nvfp4_gate_up_tiles" else 1
    rows = (1 << 18) // halves + 32
    hidden, inner = (columns, rows) if halves == 2 else (rows, columns)
    codes, scale, overall = nvfp4_weight(generator, 1, halves, rows, columns)
    stacked = sparse_file(tmp_path / "codes", experts, codes.flatten(1, 2))
    scales = sparse_file(tmp_path / "scales", experts, scale.flatten(1, 2))
    globals_ = torch.zeros(experts, halves)
    globals_[-1] = overall[0]
    assert stacked.numel() > 2**31
    x = torch.randn(tokens, columns, generator=generator).half()
    tiles = torch.tensor([[experts - 1, 0, tokens]], dtype=torch.int32)
    order, weights = torch.arange(tokens, dtype=torch.int32), torch.rand(tokens, 1)
    launch = next(of for of in LAUNCHES_OF["nvfp4_moe_experts"].steps if of.kernel == kernel)
    config = launch.config("sm90", "float16")
    found = torch.empty(tokens, rows, dtype=torch.float16)
    between = (order, tiles, found, 1) if halves == 2 else (weights, order, tiles, found)
    KERNELS["nvfp4_moe_experts"][kernel][(1, 1, 1)](
        x, stacked, scales, globals_, *between, hidden // 32, inner // 32, **config
    )
    first = config["BLOCK_N"]
    products = [
        x.float() @ dequantize.dequantize_nvfp4(c[:first], s[:first], g).T
        for c, s, g in zip(codes[0], scale[0], overall[0], strict=True)
    ]
    wanted = products[0] * weights
    if halves == 2:
        wanted = torch.nn.functional.silu(products[0]) * products[1]
    tolerance = CONTRACTS["nvfp4_moe_experts"].tolerance["float16"]
    assert error_of(found[:, :first], wanted) <= tolerance


def active(name: str, sizes: dict[str, int], target: str, dtype: str) -> list[tuple[str, Any]]:
    """The launches that these sizes make, with their constants."""
    names = sizes | {"ITEMSIZE": 4 if dtype == "float32" else 2}
    return [
        (launch.kernel, names | config | launch.picked(names))
        for launch, config in LAUNCHES_OF[name].active(names, target, dtype)
    ]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LINEAR + EXPERTS)
def test_one_form_of_each_kernel(name: str, target: str) -> None:
    tokens = (1, 4, 5, 16, 17, 256, 512, 513, 1024, 1025, 9000)
    for dtype, t in itertools.product(dtypes_of(LAUNCHES_OF[name]), tokens):
        for hidden, inner in ((6144, 2048), (576, 64), (37, 19)):
            if name in LINEAR:
                sizes = {"T": t, "in_features": hidden, "out_features": inner, **QUANTIZED}
                few = t <= 4 or (hidden == 37 and name == "fp8_linear")
                wanted = ["quantize_tokens"] if name == "fp8_linear" else []
                wanted += [f"{name}_{'rows' if few else 'tiles'}"]
            else:
                format_ = name.partition("_")[0]
                sizes = {"T": t, "k": 8, "E": 256, "hidden": hidden, "I": inner,
                         "gate_and_up": 2 * inner}  # fmt: skip
                few = t <= 16 or (hidden == 37 and format_ == "fp8")
                wanted = [f"{format_}_gate_up_pairs", f"{format_}_down_tokens"]
                if not few:
                    tiles = (f"{format_}_gate_up_tiles", f"{format_}_down_tiles")
                    wanted = ["count_pairs", "sort_pairs", *tiles, "sum_slots"]
            launches = active(name, sizes, target, dtype)
            assert [kernel for kernel, _ in launches] == wanted
            for kernel, names in launches:
                if name in EXPERTS and kernel.endswith("_tiles"):
                    assert names["BLOCK_M"] == evaluate(PAIR_ROWS, names)
                if kernel.endswith(("_tiles", "_rows", "_pairs", "_tokens")) and "BLOCK_N" in names:
                    assert 128 % names["BLOCK_N"] == 0  # one scale's rows
                if kernel.endswith("_tiles"):
                    if "fp8" in kernel:
                        assert 128 % names["BLOCK_K"] == 0  # one scale's columns
                    else:
                        assert names["BLOCK_K"] % 32 == 0  # two scales' columns
                if "HARDWARE" in names:
                    assert names["HARDWARE"] == (target != "sm80")  # it has no such instruction


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fp8_linear", lambda i: [i[0], i[1], i[2][:, :1]], "axis in_blocks: expected 2"),
        ("nvfp4_linear", lambda i: [i[0][:, :48], i[1][:, :24], i[2][:, :3], i[3]],
         "inputs in multiples of 32"),
        ("fp8_moe_experts", lambda i: [*i[:4], i[4][:, :1], *i[5:]], "axis both: expected 2"),
        ("nvfp4_moe_experts", lambda i: [*i[:5], i[5][:, :1], *i[6:]], "axis both: expected 2"),
        ("nvfp4_moe_experts",
         lambda i: [*i[:3], i[3][:, :96], i[4][:, :96], i[5], i[6][..., :24], i[7][..., :3], i[8]],
         "experts' width in multiples of 32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name: str, change: Any, message: str) -> None:
    inputs = CASES[name][0].make(torch.Generator().manual_seed(0), torch.float32)
    with pytest.raises(ValueError, match=message):
        call(name, [t.contiguous() for t in change(inputs)], CASES[name][0].attributes)


def test_quantize_activations_is_0_or_1() -> None:
    inputs = CASES["fp8_linear"][0].make(torch.Generator().manual_seed(0), torch.float32)
    with pytest.raises(ValueError, match="quantize_activations 0 or 1"):
        call("fp8_linear", inputs, {"quantize_activations": 2})


def test_compiled_kernels_fit_and_spill_where_it_pays(each_library: Path) -> None:
    """Every image of the four operators, in all its targets and dtypes."""
    names = {launch.kernel for launches in LAUNCHES_OF.values() for launch in launches.steps}
    found = compiled_kernels(each_library, names)
    assert {(k.entry["function"], k.entry["target"]) for k in found} == set(
        itertools.product(names, selection_of(each_library).targets)
    )
    for kernel in found:
        assert kernel.fits and not kernel.spills, kernel
