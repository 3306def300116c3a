"""The kernels of LinearAttention and CausalConvWithState against onnxruntime's own operators.

Every input lies between NaNs, and every output starts as NaN between more: what is read beyond an
input or written beyond an output shows in each test.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch
from plugin_harness import compiled_kernels
from test_standard_operators import run_onnxruntime
from torch import Tensor

from glm_trt.plugins.causal_conv_with_state import kernel as conv_kernel
from glm_trt.plugins.causal_conv_with_state.launch import LAUNCHES as CONVOLUTION
from glm_trt.plugins.linear_attention import kernel
from glm_trt.plugins.linear_attention.launch import LAUNCHES as LINEAR

RULES = ("linear", "gated", "delta", "gated_delta")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
MARGIN = 1024


def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """NaN, with as much of it on both sides."""
    count = int(np.prod(shape))
    whole = torch.full((count + 2 * MARGIN,), float("nan"), dtype=dtype)
    return whole[MARGIN : MARGIN + count].view(shape)


def between_guards(tensor: Tensor | None) -> Tensor:
    """The same between NaNs; for none, a null pointer."""
    if tensor is None:
        return torch.empty(0)
    return guarded(tuple(tensor.shape), tensor.dtype).copy_(tensor)


def assert_guards(tensor: Tensor) -> None:
    """Nothing was written beyond it."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    assert bool(whole[:MARGIN].isnan().all())
    assert bool(whole[MARGIN + tensor.numel() :].isnan().all())


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative L2."""
    assert found.shape == wanted.shape
    difference = (found.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm().clamp(min=1e-30))


@dataclass(frozen=True)
class Recurrence:
    """Sizes of one call, and what it has."""

    rule: str = "gated_delta"
    tokens: int = 17
    heads: int = 2
    group: int = 1
    k: int = 16
    v: int = 16
    batch: int = 1
    per_channel: bool = False
    past: bool = True
    one_beta: bool = False
    scale: float = 0.0

    def inputs(self) -> list[Tensor | None]:
        """query, key, value, past_state, decay, beta"""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        shape = (self.batch, self.tokens)
        key = random(*shape, self.heads, self.k)
        key /= key.norm(dim=-1, keepdim=True)
        decays = self.heads * (self.k if self.per_channel else 1)
        return [
            random(*shape, self.heads * self.group * self.k),
            key.flatten(2),
            random(*shape, self.heads * self.v),
            random(self.batch, self.heads, self.k, self.v) if self.past else None,
            -random(*shape, decays).abs() if "gated" in self.rule else None,
            random(*shape, 1 if self.one_beta else self.heads).sigmoid()
            if "delta" in self.rule
            else None,
        ]


def sizes_of(inputs: list[Tensor | None]) -> dict[str, int]:
    """The size arguments of the kernels, from the inputs."""
    query, key, value, past, decay, beta = inputs
    assert query is not None and key is not None and value is not None
    return {
        "n_tokens": query.shape[1],
        "n_past": int(past is not None),
        "n_decay": 0 if decay is None else decay.shape[2],
        "n_beta": 0 if beta is None else beta.shape[2],
    }


def launch(
    case: Recurrence, inputs: list[Tensor | None], block_t: int, *,
    state: torch.dtype = torch.float32, block_v: int = 32, in_place: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Output and present state: chunks of block_t tokens, or token by token if it is 0."""
    given = [between_guards(tensor) for tensor in inputs]
    query, key, value, past, decay, beta = given
    dtype = query.dtype
    sizes, b, t, h = sizes_of(inputs), case.batch, case.tokens, case.heads
    block_k = max(16, 1 << (case.k - 1).bit_length())
    output = guarded((b, t, h * case.group * case.v), dtype)
    present = past if in_place else guarded((b, h, case.k, case.v), state)
    heads = (sizes["n_tokens"], h, case.group)
    grid = (-(-case.v // block_v), b * h, 1)
    if not block_t:
        kernel.recur_tokens[grid](
            query, key, value, past, decay, beta, output, present, *heads, case.k, case.v,
            sizes["n_past"], sizes["n_decay"], sizes["n_beta"], case.scale, BLOCK_K=block_k,
            BLOCK_V=block_v,
        )  # fmt: skip
    else:
        chunks, per_channel = -(-t // block_t), int(sizes["n_decay"] > h)
        tiles = b * h * chunks
        inverse = guarded((tiles, block_t, block_t), dtype)
        scores = guarded((tiles * case.group, block_t, block_t), dtype)
        factors = guarded((tiles, case.k if per_channel else 2 * block_t), torch.float32)
        scaled = [guarded((tiles * n, block_t, block_k), dtype) for n in (case.group, 1, 1)]
        if not per_channel:
            scaled = [torch.empty(0, dtype=dtype)] * 3
        if chunks:
            kernel.prepare_chunks[(chunks, b * h, 1)](
                query, key, decay, beta, inverse, scores, factors, *scaled, *heads, case.k,
                sizes["n_decay"], sizes["n_beta"], PER_CHANNEL=per_channel, BLOCK_K=block_k,
                BLOCK_T=block_t,
            )  # fmt: skip
        kernel.scan_chunks[grid](
            *(scaled if per_channel else (query, key, key)), value, past, inverse, scores, factors,
            output, present, *heads, case.k, case.v, sizes["n_past"], sizes["n_beta"], case.scale,
            PER_CHANNEL=per_channel, ONE_QUERY=int(case.group == 1), BLOCK_K=block_k,
            BLOCK_V=block_v, BLOCK_T=block_t,
        )  # fmt: skip
        for tensor in (inverse, scores, factors, *(scaled if per_channel else ())):
            assert_guards(tensor)
            assert not bool(tensor.isnan().any())
    assert_guards(output)
    assert_guards(present)
    return [output, present]


def wanted_of(case: Recurrence, inputs: list[Tensor | None]) -> list[Tensor]:
    """What onnxruntime's operator says, in float32."""
    attributes = {"q_num_heads": case.heads * case.group, "kv_num_heads": case.heads,
                  "update_rule": case.rule, "scale": case.scale}  # fmt: skip
    return run_onnxruntime("linear_attention", inputs, attributes)


def naive(case: Recurrence, inputs: list[Tensor | None]) -> list[Tensor]:
    """Token by token in float64."""
    b, t, h = case.batch, case.tokens, case.heads
    query, key, value, past, decay, beta = (x if x is None else x.double() for x in inputs)
    assert query is not None and key is not None and value is not None
    query = query.view(b, t, h, case.group, case.k) * (case.scale or case.k**-0.5)
    key, value = key.view(b, t, h, case.k), value.view(b, t, h, case.v)
    state = torch.zeros(b, h, case.k, case.v, dtype=torch.float64) if past is None else past.clone()
    output = torch.zeros(b, t, h, case.group, case.v, dtype=torch.float64)
    for i in range(t):
        if decay is not None:
            state = state * decay[:, i].view(b, h, -1, 1).exp()
        w = value[:, i]
        if beta is not None:
            found = torch.einsum("bhkv,bhk->bhv", state, key[:, i])
            w = beta[:, i].unsqueeze(-1) * (w - found)
        state = state + key[:, i].unsqueeze(-1) * w.unsqueeze(-2)
        output[:, i] = torch.einsum("bhkv,bhgk->bhgv", state, query[:, i])
    return [output.flatten(2), state]


def assert_agrees(
    case: Recurrence, block_t: int, *, tolerance: float = TOLERANCE[torch.float32]
) -> None:
    inputs = case.inputs()
    for found, wanted in zip(launch(case, inputs, block_t), wanted_of(case, inputs), strict=True):
        assert error(found, wanted) <= tolerance


# Every rule and form of the inputs, at sizes that fill no block.
RULE_CASES = [
    Recurrence(rule, tokens=18, k=20, v=12, per_channel=per_channel, past=past)
    for rule in RULES
    for per_channel in ((False, True) if "gated" in rule else (False,))
    for past in (False, True)
]
OTHER_CASES = [
    Recurrence(tokens=19, group=2, k=12, v=20, batch=2, one_beta=True),
    Recurrence(tokens=19, group=4, k=12, v=1, per_channel=True, scale=0.3),
    Recurrence(tokens=20, heads=1, group=2, k=1, v=33, per_channel=True, scale=2.0),
    Recurrence(tokens=17, heads=3, k=33, v=40, batch=2),
    Recurrence(tokens=17, heads=3, k=33, v=7, batch=2, per_channel=True, one_beta=True),
    Recurrence("delta", tokens=18, heads=1, group=4, k=17, v=35, one_beta=True, past=False),
    Recurrence("gated", tokens=18, group=3, k=20, v=12, batch=2, per_channel=True),
]


@pytest.mark.parametrize("case", RULE_CASES + OTHER_CASES, ids=str)
@pytest.mark.parametrize("block_t", [0, 16])
def test_agrees_with_onnxruntime(case: Recurrence, block_t: int) -> None:
    assert_agrees(case, block_t)


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_length(tokens: int, per_channel: bool) -> None:
    case = Recurrence(tokens=tokens, heads=1, k=8, v=8, per_channel=per_channel)
    for block_t in (0, 16, 32, 64):
        if tokens in (65, 130) or block_t != 32:
            assert_agrees(case, block_t)


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("block_t", [0, 32])
def test_no_token_copies_the_state(past: bool, block_t: int) -> None:
    case = Recurrence(tokens=0, k=20, v=36, batch=2, past=past)
    inputs = case.inputs()
    output, present = launch(case, inputs, block_t)
    assert output.numel() == 0
    assert torch.equal(present, torch.zeros(2, 2, 20, 36) if inputs[3] is None else inputs[3])


def decayed(case: Recurrence, decay: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    """The case's inputs with another decay."""
    inputs = case.inputs()
    assert inputs[4] is not None
    return [*inputs[:4], decay(inputs[4]), inputs[5]]


def some(decay: Tensor, value: float, every: int) -> Tensor:
    """Another value at one of several tokens, or at all of them."""
    changed = decay.clone()
    changed[:, every // 2 :: every] = value
    return changed


STRONG = {
    "-30 a token": lambda g: torch.full_like(g, -30.0),
    "-1e4 a token": lambda g: torch.full_like(g, -1e4),
    "-1e4 now and then": lambda g: some(g / 50, -1e4, 7),
    "-inf now and then": lambda g: some(g / 50, float("-inf"), 11),
    "-1e4 at random": lambda g: torch.where(g < -1.0, -1e4, g / 50),
    "no decay": torch.zeros_like,
    "growth": lambda g: g * -0.3,
    "both": lambda g: torch.where(g < -1.0, g * 3, -g),
}


@pytest.mark.parametrize("name", STRONG)
@pytest.mark.parametrize("per_channel", [False, True])
def test_any_decay(name: str, per_channel: bool) -> None:
    """To float32, also for what comes after a decay that leaves nothing."""
    case = Recurrence(tokens=40, heads=1, k=12, v=8, per_channel=per_channel)
    inputs = decayed(case, STRONG[name])
    wanted = naive(case, inputs)
    for block_t in (0, 32):
        for found, right in zip(launch(case, inputs, block_t), wanted, strict=True):
            assert error(found, right) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("block_t", [16, 64])
def test_equal_keys(block_t: int) -> None:
    """Powers of M would grow beyond float32's digits here; solving row by row does not."""
    case = Recurrence("delta", tokens=64, heads=1, k=8, v=8)
    inputs = case.inputs()
    assert inputs[1] is not None
    inputs[1] = inputs[1][:, :1].expand(-1, 64, -1).contiguous()
    inputs[5] = torch.ones(1, 64, 1)
    for found, right in zip(launch(case, inputs, block_t), naive(case, inputs), strict=True):
        assert error(found, right) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("state", [None, torch.float32])
@pytest.mark.parametrize("per_channel", [False, True])
def test_half_precision(dtype: torch.dtype, state: torch.dtype | None, per_channel: bool) -> None:
    """Against the naive loop in float64, with the state in float32 or in the same dtype."""
    case = Recurrence(tokens=70, group=2, heads=1, k=32, v=20, per_channel=per_channel)
    state = state or dtype
    inputs = [None if x is None else x.to(dtype) for x in case.inputs()]
    inputs[3] = case.inputs()[3].to(state)  # type: ignore[union-attr]
    inputs[4] = inputs[4] / 10  # type: ignore[operator]
    wanted = naive(case, inputs)
    for block_t in (0, 32):
        output, present = launch(case, inputs, block_t, state=state)
        assert output.dtype == dtype and present.dtype == state
        assert error(output, wanted[0]) <= TOLERANCE[dtype]
        assert error(present, wanted[1]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("block_t", [0, 16])
@pytest.mark.parametrize("per_channel", [False, True])
def test_in_place_and_equal_bits_twice(block_t: int, per_channel: bool) -> None:
    """More than one block of values, so one program's state is another's neighbour."""
    case = Recurrence(tokens=18, k=12, v=40, batch=2, per_channel=per_channel)
    inputs = case.inputs()
    first = launch(case, inputs, block_t, block_v=16)
    for in_place in (False, True):
        again = launch(case, inputs, block_t, block_v=16, in_place=in_place)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_prompt_in_two_parts() -> None:
    """The state that chunks leave is the one that tokens go on with."""
    case = Recurrence(tokens=37, group=2)
    inputs = case.inputs()
    whole, last = launch(case, inputs, 16)

    def part(tokens: slice, past: Tensor | None, block_t: int) -> list[Tensor]:
        cut = [x if x is None else x[:, tokens].contiguous() for x in inputs]
        assert cut[0] is not None
        cut[3] = past
        return launch(replace(case, tokens=cut[0].shape[1]), cut, block_t)

    first, state = part(slice(0, 33), inputs[3], 16)
    second, state = part(slice(33, None), state, 0)
    assert error(torch.cat([first, second], 1), whole) <= 1e-6
    assert error(state, last) <= 1e-6


def convolve(
    inputs: list[Tensor | None], *, silu: bool, blocks: tuple[int, int], in_place: bool = False
) -> list[Tensor]:
    """CausalConvWithState's output and present state, in blocks of channels and positions."""
    x, weight, bias, past = (between_guards(tensor) for tensor in inputs)
    batch, channels, length = x.shape
    width = weight.shape[2]
    output = guarded((batch, channels, length), x.dtype)
    present = past if in_place else guarded((batch, channels, width - 1), x.dtype)
    grid = (-(-channels // blocks[0]), max(1, -(-length // blocks[1])), batch)
    conv_kernel.convolve[grid](
        x, weight, bias, past, output, present, channels, length, width,
        int(inputs[2] is not None), int(inputs[3] is not None), int(silu), BLOCK_C=blocks[0],
        BLOCK_L=blocks[1],
    )  # fmt: skip
    assert_guards(output)
    assert_guards(present)
    return [output, present]


def convolution(
    width: int, length: int, *, channels: int = 5, batch: int = 2, bias: bool = True,
    past: bool = True,
) -> list[Tensor | None]:  # fmt: skip
    generator = torch.Generator().manual_seed(width * 100 + length)
    shapes = [(batch, channels, length), (channels, 1, width), (channels,),
              (batch, channels, width - 1)]  # fmt: skip
    tensors = [torch.randn(*shape, generator=generator) for shape in shapes]
    return [*tensors[:2], tensors[2] if bias else None, tensors[3] if past else None]


def convolution_by_hand(inputs: list[Tensor | None], silu: bool) -> list[Tensor]:
    """In float64."""
    x, weight, bias, past = (None if tensor is None else tensor.double() for tensor in inputs)
    assert x is not None and weight is not None
    if past is None:
        past = x.new_zeros(*x.shape[:2], weight.shape[2] - 1)
    whole = torch.cat([past, x], 2)
    y = torch.zeros_like(x)
    for k in range(weight.shape[2]):
        y += weight[:, 0, k, None] * whole[:, :, k : k + x.shape[2]]
    if bias is not None:
        y += bias[:, None]
    return [y * y.sigmoid() if silu else y, whole[:, :, x.shape[2] :]]


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [1, 3, 13])
@pytest.mark.parametrize("blocks", [(2, 8), (8, 1)])
def test_convolution_agrees_with_onnxruntime(
    width: int, length: int, blocks: tuple[int, int]
) -> None:
    for bias, past, silu in ((True, True, False), (False, True, True), (True, False, True)):
        # A state of width 0 is none.
        inputs = convolution(width, length, bias=bias, past=past and width > 1)
        activation = "silu" if silu else "none"
        wanted = run_onnxruntime("causal_conv_with_state", inputs, {"activation": activation})
        found = convolve(inputs, silu=silu, blocks=blocks)
        assert error(found[0], wanted[0]) <= 1e-6
        assert torch.equal(found[1], convolution_by_hand(inputs, silu)[1].float())
        assert width == 1 or torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("width", [1, 3, 6, 20])
@pytest.mark.parametrize("length", [0, 1, 2, 5, 18])
@pytest.mark.parametrize("blocks", [(4, 8), (8, 1)])
def test_convolution_in_place(width: int, length: int, blocks: tuple[int, int]) -> None:
    """Whatever the width: of a channel's programs, one alone reads and writes the state."""
    inputs = convolution(width, length)
    found = convolve(inputs, silu=True, blocks=blocks, in_place=True)
    again = convolve(inputs, silu=True, blocks=blocks)
    for one, other, wanted in zip(found, again, convolution_by_hand(inputs, True), strict=True):
        assert torch.equal(one, other)
        assert error(one, wanted) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convolution_in_half_precision(dtype: torch.dtype) -> None:
    inputs = [None if x is None else x.to(dtype) for x in convolution(4, 40)]
    wanted = convolution_by_hand(inputs, True)
    output, present = convolve(inputs, silu=True, blocks=(4, 16))
    assert error(output, wanted[0]) <= TOLERANCE[dtype]
    assert torch.equal(present.double(), wanted[1])


def test_convolution_has_the_same_bits_token_by_token() -> None:
    inputs = convolution(4, 12)
    whole, last = convolve(inputs, silu=True, blocks=(4, 8))
    x, weight, bias, past = inputs
    assert x is not None
    for i in range(12):
        step, past = convolve(
            [x[:, :, i : i + 1].contiguous(), weight, bias, past], silu=True, blocks=(8, 1)
        )
        assert torch.equal(step, whole[:, :, i : i + 1])
    assert past is not None and torch.equal(past, last)


def test_compiled_kernels_fit_and_spill_where_it_is_known(each_library: Path) -> None:
    """Those for widths that are multiples of 16, and the convolution, in each target and dtype.

    Known: a state in half precision at 128 channels, on sm100 and sm120, 8 bytes a thread.
    """
    names = {launch.kernel for launches in (LINEAR, CONVOLUTION) for launch in launches.steps}
    found = [k for k in compiled_kernels(each_library, names)
             if k.is_aligned or k.entry["function"] == "convolve"]  # fmt: skip
    assert {k.entry["function"] for k in found} == names
    spilling = set()
    for compiled in found:
        assert compiled.fits, compiled
        if compiled.spills:
            assert compiled.stack == 8, compiled
            entry = compiled.entry
            state = dict(entry["signature"])["p_present"]
            spilling.add((entry["function"], entry["target"], state))
    assert spilling <= {
        ("recur_tokens", target, state)
        for target in ("sm100", "sm120")
        for state in ("*fp16", "*bf16")
    }
