"""Test cases of NVFP4 linear layers: both paths, sizes that no block divides."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled, nvfp4_weight


def _case(name: str, tokens: int, rows: int, columns: int) -> OperatorCase:
    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        x = torch.randn(tokens, columns, generator=generator)
        weight, scale, global_scale = nvfp4_weight(generator, rows, columns)
        return [x.to(dtype), weight, scale, global_scale.view(1)]

    return OperatorCase(name, {}, make)


CASES = [
    _case("one token", 1, 130, 160),
    _case("no token", 0, 130, 160),
    _case("one group of 32", 2, 5, 32),
    _case("576 rows", 2, 576, 96),
    _case("more than a program reads at once", 3, 9, 2144),
    _case("5 tokens", 5, 140, 288),
    _case("17 tokens", 17, 67, 288),
    _case("513 tokens", 513, 136, 96),
]


SAMPLED = Sampled({"T": 5000, "in_features": 7040, "out_features": 7000}, {"in_features": 32})
