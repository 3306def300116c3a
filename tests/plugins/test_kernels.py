"""Every operator end to end on host memory, each case interpreted once.

`enqueue` of the compiled library launches under Triton's interpreter, in exactly the workspace that
a profile of more tokens asked for. The result is the reference's, and what reached the driver is
what `launch.py` says: the same kernels, grids, addresses, numbers and constants.
"""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

import pytest
import torch
from plugin_harness import WORKSPACE, Harness, Launched, without_gaps
from torch import Tensor

from glm_trt.plugins.common.aot import dtypes_of
from glm_trt.plugins.common.launch import Launch, Launches
from glm_trt.plugins.common.run import run
from glm_trt.plugins.folders import CONTRACTS

GUARD = 64  # elements before and after each buffer
TOKENS = ("B", "S", "T", "L")  # axes of which a profile has more


class Guarded:
    """Allocates buffers of NaN (of −7 for integers) between guards that must stay as they are."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, shape: list[int], *, dtype: torch.dtype) -> Tensor:
        count = int(torch.Size(shape).numel())
        fill = float("nan") if dtype.is_floating_point else -7
        whole = torch.full((count + 2 * GUARD,), fill, dtype=dtype)
        self.buffers.append((whole, whole.clone()))
        return whole[GUARD : GUARD + count].view(shape)

    def check(self) -> None:
        for whole, before in self.buffers:
            for part in (slice(GUARD), slice(len(whole) - GUARD, None)):
                assert torch.equal(bits(whole[part]), bits(before[part]))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.numel() else tensor


def cases() -> list[Any]:
    """All cases in all dtypes; by default each in one, so that every operator has all of them."""
    found = []
    for name in CONTRACTS:
        dtypes = dtypes_of(import_module(f"glm_trt.plugins.{name}.launch").LAUNCHES)
        for i, case in enumerate(import_module(f"glm_trt.plugins.{name}.cases").CASES):
            for j, dtype in enumerate(dtypes):
                marks = () if j == i % len(dtypes) else (pytest.mark.slow,)
                label = f"{name}-{case.name}-{dtype}"
                found.append(pytest.param(name, case, dtype, i, id=label, marks=marks))
    return found


def followed(
    launches: Launches, tensors: list[Tensor], attributes: dict[str, Any], target: str
) -> list[Launched]:
    """What the launches say, by following it in Python with nothing run."""
    made: list[Tensor] = []
    launched: list[Launched] = []

    def allocate(shape: list[int], *, dtype: torch.dtype, device: Any) -> Tensor:
        made.append(torch.empty(shape, dtype=dtype))
        return made[-1]

    def place(argument: Any, offsets: dict[str, int]) -> Any:
        if isinstance(argument, float):
            return ctypes.c_float(argument).value
        if not isinstance(argument, Tensor):
            return argument
        outputs = len(launches.contract.outputs)
        for buffer, tensor in zip(launches.workspace, made[outputs:], strict=True):
            if tensor is argument:
                return WORKSPACE, offsets[buffer.name], tensor.dtype
        for kind, of in (("input", tensors), ("output", made[:outputs])):
            for i, tensor in enumerate(of):
                if tensor is argument and tensor.numel():
                    return f"{kind} {i}", 0, tensor.dtype
        assert not argument.numel()
        return "null", 0, argument.dtype

    class Recorder:
        def __init__(self, kernel: str) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def record(*arguments: Any, **constants: int) -> None:
                launch = self.launch_of(constants)
                aligned = [
                    value for name, value in zip(launch.arguments, arguments, strict=True)
                    if name in launch.aligned
                ]  # fmt: skip
                wide = bool(aligned) and all(value % 16 == 0 for value in aligned)
                launched.append(
                    Launched(self.kernel, grid, arguments, constants, wide)
                )  # placed below

            return record

        def launch_of(self, constants: dict[str, int]) -> Launch:
            """The launch of this configuration, or one that takes the same arguments as wide."""
            found = [
                launch for launch in launches.steps if launch.kernel == self.kernel
                and launch.config(target, activation).items() <= constants.items()
            ]  # fmt: skip
            assert len({launch.aligned for launch in found}) == 1
            return found[0]

    absent = [None] * (len(launches.contract.inputs) - len(tensors))
    activation = launches.contract.types_of([*tensors, *absent]).activation
    kernels = {launch.kernel: Recorder(launch.kernel) for launch in launches.steps}
    run(launches, kernels, [*tensors, *absent], attributes, target, allocate=allocate)
    outputs = len(launches.contract.outputs)
    offsets, end = {}, 0
    for buffer, tensor in zip(launches.workspace, made[outputs:], strict=True):
        offsets[buffer.name] = offsets[buffer.over] if buffer.over else end
        end = max(end, offsets[buffer.name] + -(-tensor.nbytes // 256) * 256)
    return [
        Launched(of.kernel, of.grid, tuple(place(a, offsets) for a in of.arguments), of.constants,
                 of.wide)
        for of in launched
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "case", "dtype", "number"), cases())
def test_enqueue_is_run_and_the_reference(
    harness: Harness, name: str, case: Any, dtype: str, number: int
) -> None:
    operator = import_module(f"glm_trt.plugins.{name}.reference")
    launches = import_module(f"glm_trt.plugins.{name}.launch").LAUNCHES
    inputs = case.make(torch.Generator().manual_seed(1), getattr(torch, dtype))
    expected = operator.reference(*inputs, **case.attributes)
    expected = expected if isinstance(expected, tuple) else (expected,)
    allocate = Guarded()
    found = tuple(allocate(list(of.shape), dtype=of.dtype) for of in expected)
    given = without_gaps(launches.contract, inputs, case.attributes)
    target = harness.targets[number % len(harness.targets)]
    larger = {
        axis: 2 * size + 70
        for port, tensor in zip(launches.contract.inputs, given, strict=False)
        for axis, size in zip(port.axes, tensor.shape, strict=True)
        if axis in TOKENS
    }
    harness.run(launches.contract, given, case.attributes, list(found),
                int(target.removeprefix("sm")), larger=larger)  # fmt: skip
    allocate.check()
    wanted = followed(launches, given, case.attributes, target)
    assert harness.launches == wanted
    assert all(a.wide in (None, b.wide) for a, b in zip(harness.launches, wanted, strict=True))
    assert_agrees(found, expected, launches.contract.tolerance[dtype])
    if any(tensor is None for tensor in inputs[: len(given)]):  # which TensorRT cannot leave out
        kernels = vars(import_module(f"glm_trt.plugins.{name}.kernel"))
        again = run(launches, kernels, inputs, case.attributes, target)
        assert_agrees(again, expected, launches.contract.tolerance[dtype])


def assert_agrees(
    found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float
) -> None:
    for ours, wanted in zip(found, expected, strict=True):
        assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)
        if wanted.dtype.is_floating_point:
            difference = (ours.double() - wanted.double()).norm()
            assert difference <= tolerance * wanted.double().norm()
        else:
            assert torch.equal(ours, wanted)


@pytest.mark.parametrize("name", CONTRACTS)
def test_limits_are_said(name: str) -> None:
    launches = import_module(f"glm_trt.plugins.{name}.launch").LAUNCHES
    case = import_module(f"glm_trt.plugins.{name}.cases").CASES[0]
    inputs = case.make(torch.Generator().manual_seed(1), torch.float32)
    wrong = {"moe_routing": {"top_k": 17}, "indexer_topk": {"index_topk": 0},
             "sparse_mla": {"value_width": 513}, "causal_mla": {"value_width": 513}}  # fmt: skip
    if name in wrong:
        with pytest.raises(ValueError, match=launches.contract.name):
            run(launches, {}, inputs, case.attributes | wrong[name], "sm90")
    strided = [inputs[0].expand(2, *inputs[0].shape).transpose(0, -1)[..., 0], *inputs[1:]]
    with pytest.raises(ValueError, match=r"expected a contiguous tensor|axis"):
        run(launches, {}, strided, case.attributes, "sm90")
