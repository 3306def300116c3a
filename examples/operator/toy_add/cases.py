"""Test cases of ToyAdd."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled


def _case(name: str, tokens: int, width: int) -> OperatorCase:
    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        return [torch.randn(tokens, width, generator=generator).to(dtype) for _ in range(2)]

    return OperatorCase(name, {"scale": 0.5}, make)


CASES = [
    _case("odd", 3, 67),
    _case("no token", 0, 8),
    _case("one number", 1, 1),
]
SAMPLED = Sampled({"T": 100, "width": 100}, attributes=lambda _: {"scale": 1.0})
