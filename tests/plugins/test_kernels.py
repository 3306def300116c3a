"""Every operator's kernels under Triton's interpreter against its naive reference."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_trt.plugins.build import OPERATORS
from glm_trt.plugins.common.aot import dtypes_of
from glm_trt.plugins.common.launch import TARGETS, run

GUARD = 64  # elements before and after each buffer


class Guarded:
    """Allocates buffers of NaN (of −7 for integers) between guards that must stay as they are."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, shape: list[int], *, dtype: torch.dtype, device: Any) -> Tensor:
        count = int(torch.Size(shape).numel())
        fill = float("nan") if dtype.is_floating_point else -7
        whole = torch.full((count + 2 * GUARD,), fill, dtype=dtype)
        self.buffers.append((whole, whole.clone()))
        return whole[GUARD : GUARD + count].view(shape)

    def check(self) -> None:
        for whole, before in self.buffers:
            for part in (slice(GUARD), slice(len(whole) - GUARD, None)):
                assert torch.equal(whole[part].view(torch.uint8), before[part].view(torch.uint8))


def cases() -> list[Any]:
    return [
        pytest.param(name, case, dtype, id=f"{name}-{case.name}-{dtype}")
        for name in OPERATORS
        for case in import_module(f"glm_trt.plugins.{name}.cases").CASES
        for dtype in dtypes_of(import_module(f"glm_trt.plugins.{name}.plan").PLAN)
    ]


@pytest.mark.parametrize(("name", "case", "dtype"), cases())
def test_kernels_equal_the_reference(name: str, case: Any, dtype: str) -> None:
    operator = import_module(f"glm_trt.plugins.{name}")
    plan = import_module(f"glm_trt.plugins.{name}.plan").PLAN
    kernels = vars(import_module(f"glm_trt.plugins.{name}.kernel"))
    inputs = case.make(torch.Generator().manual_seed(1), getattr(torch, dtype))
    expected = operator.reference(*inputs, **case.attributes)
    expected = expected if isinstance(expected, tuple) else (expected,)
    target = TARGETS[sum(map(ord, case.name)) % len(TARGETS)]
    found = []
    for _ in range(2):
        allocate = Guarded()
        found.append(run(plan, kernels, inputs, case.attributes, target, allocate=allocate))
        allocate.check()
    for first, second, wanted in zip(*found, expected, strict=True):
        assert first.shape == wanted.shape
        assert first.dtype == wanted.dtype
        assert torch.equal(first.view(torch.uint8), second.view(torch.uint8))
        if wanted.dtype.is_floating_point:
            difference = (first.double() - wanted.double()).norm()
            assert difference <= plan.contract.tolerance[dtype] * wanted.double().norm()
        else:
            assert torch.equal(first, wanted)


@pytest.mark.parametrize("name", OPERATORS)
def test_limits_are_said(name: str) -> None:
    plan = import_module(f"glm_trt.plugins.{name}.plan").PLAN
    case = import_module(f"glm_trt.plugins.{name}.cases").CASES[0]
    inputs = case.make(torch.Generator().manual_seed(1), torch.float32)
    wrong = {"moe_routing": {"top_k": 17}, "indexer_topk": {"index_topk": 0},
             "sparse_mla": {"value_width": 513}, "causal_mla": {"value_width": 513}}  # fmt: skip
    if name in wrong:
        with pytest.raises(ValueError, match=plan.contract.name):
            run(plan, {}, inputs, case.attributes | wrong[name], "sm90")
    strided = [inputs[0].expand(2, *inputs[0].shape).transpose(0, -1)[..., 0], *inputs[1:]]
    with pytest.raises(ValueError, match=r"expected a contiguous tensor|axis"):
        run(plan, {}, strided, case.attributes, "sm90")
