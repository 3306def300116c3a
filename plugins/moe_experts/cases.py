"""Test cases of MoE experts: both paths, odd sizes, all and one expert."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled


def _case(name: str, tokens: int, k: int, experts: int = 6, hidden: int = 40, inner: int = 24,
          spread: int | None = None) -> OperatorCase:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        order = random(tokens, spread or experts).argsort(-1)[:, :k] + experts - (spread or experts)
        x, weights = random(tokens, hidden), torch.rand(tokens, k, generator=generator)
        gate_up, down = random(experts, 2 * inner, hidden), random(experts, hidden, inner)
        return [x.to(dtype), order.int(), weights, (gate_up / hidden**0.5).to(dtype),
                (down / inner**0.5).to(dtype)]  # fmt: skip

    return OperatorCase(name, {}, make)


CASES = [
    _case("one token", 1, 4),
    _case("no token", 0, 4),
    _case("few", 7, 3),
    _case("few, odd sizes", 3, 2, experts=5, hidden=37, inner=19),
    _case("16 tokens", 16, 1, hidden=530, inner=9),
    _case("17 tokens", 17, 4),
    _case("many, odd sizes", 70, 3, experts=5, hidden=67, inner=71),
    _case("every expert", 30, 6),
    _case("one expert hit", 90, 1, spread=1),
    _case("the last two of 20 experts", 40, 2, experts=20, spread=2),
    _case("one expert hit by few", 5, 1, spread=1),
    _case("few, sizes of 16", 3, 2, hidden=64, inner=32),
    _case("many, sizes of 16", 40, 2, hidden=64, inner=48),
    # More than 8, and more than 32, pairs an expert: tiles of 64 and of 128.
    _case("tiles of 64", 50, 2, experts=4, hidden=80, inner=96),
    _case("tiles of 128", 99, 2, experts=4, hidden=144, inner=80),
    _case("tiles of 128, one expert hit", 150, 1, experts=3, hidden=80, inner=144, spread=1),
    *(
        # Odd k for few tokens, even k for many.
        _case(f"{k} experts a token", 2 if k % 2 else 18, k, experts=9, hidden=32, inner=16)
        for k in range(1, 9)
    ),
]


SAMPLED = Sampled(
    {"T": 5000, "k": 16, "E": 512, "hidden": 7040, "I": 3008},
    follow=lambda s, _: {"2I": 2 * s["I"]},
)
