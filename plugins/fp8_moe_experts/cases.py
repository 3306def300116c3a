"""Test cases of FP8 MoE experts: both paths, partial blocks, all and one expert."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled, fp8_weight, routed


def _case(name: str, tokens: int, k: int, experts: int = 4, hidden: int = 144, inner: int = 48,
          spread: int | None = None) -> OperatorCase:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        x, indices, weights = routed(generator, tokens, k, experts, hidden, spread or experts)
        gate_up, scale = fp8_weight(generator, experts, 2, inner, hidden)
        return [x.to(dtype), indices, weights, gate_up.flatten(1, 2), scale,
                *fp8_weight(generator, experts, hidden, inner)]  # fmt: skip

    return OperatorCase(name, {}, make)


CASES = [
    _case("one token", 1, 4),
    _case("no token", 0, 4),
    _case("few, partial blocks", 3, 2, hidden=130, inner=140),
    _case("17 tokens, odd sizes", 17, 2, hidden=37, inner=19),
    _case("16 tokens, sizes of 16", 16, 1, hidden=16, inner=144),
    _case("17 tokens", 17, 4, hidden=272, inner=144),
    _case("tiles of 64", 50, 2, experts=4, hidden=80, inner=96),
    _case("tiles of 128", 99, 2, experts=4, inner=80),
    _case("one expert hit", 90, 1, spread=1),
]


SAMPLED = Sampled({"T": 5000, "k": 16, "E": 512, "hidden": 7040, "I": 3008})
