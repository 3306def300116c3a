"""Test cases of NVFP4 MoE experts: both paths, all and one expert."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled, nvfp4_weight, routed


def _case(name: str, tokens: int, k: int, experts: int = 4, hidden: int = 160, inner: int = 64,
          spread: int | None = None) -> OperatorCase:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        x, indices, weights = routed(generator, tokens, k, experts, hidden, spread or experts)
        codes, scale, both = nvfp4_weight(generator, experts, 2, inner, hidden)
        return [x.to(dtype), indices, weights, codes.flatten(1, 2), scale.flatten(1, 2), both,
                *nvfp4_weight(generator, experts, hidden, inner)]  # fmt: skip

    return OperatorCase(name, {}, make)


CASES = [
    _case("one token", 1, 4),
    _case("no token", 0, 4),
    _case("few, sizes of 32", 3, 2, hidden=32, inner=32),
    _case("16 tokens", 16, 1, hidden=64, inner=32),
    _case("17 tokens", 17, 4, hidden=288),
    _case("tiles of 64", 50, 2, experts=4, hidden=96, inner=96),
    _case("tiles of 128", 99, 2, experts=4, hidden=96),
    _case("one expert hit", 90, 1, spread=1),
]


SAMPLED = Sampled(
    {"T": 5000, "k": 16, "E": 512, "hidden": 7040, "gate_and_up": 6016},
    {"hidden": 32, "gate_and_up": 64},
)
