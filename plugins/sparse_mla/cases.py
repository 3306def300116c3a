"""Test cases of sparse MLA: whole and split selections, -1 anywhere; the rest is NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled


def _case(
    name: str, batch: int, length: int, heads: int, rank: int, rope: int, capacity: int,
    selected: int, missing: float = 0.0,
) -> OperatorCase:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        query, cache = (
            random(batch, length, heads, rank + rope),
            random(batch, 1, capacity, rank + rope),
        )
        indices = random(batch, length, capacity).argsort(-1)[..., :selected].int()
        indices[torch.rand(indices.shape, generator=generator) < missing] = -1
        for b in range(batch):
            used = torch.zeros(capacity, dtype=torch.bool)
            used[indices[b][indices[b] >= 0].long()] = True
            cache[b, 0, ~used] = float("nan")
        return [query.to(dtype), cache.to(dtype), indices]

    attributes = {"scale": (rank + rope) ** -0.5, "value_width": rank}
    return OperatorCase(name, attributes, make)


CASES = [
    _case("decode", 1, 1, 4, 32, 8, 40, 20),
    _case("no token", 1, 0, 4, 32, 8, 16, 4),
    _case("one entry", 1, 1, 3, 32, 8, 16, 1),
    _case("split", 1, 1, 4, 32, 8, 300, 200),
    _case("split, -1 anywhere", 2, 2, 5, 24, 10, 300, 150, missing=0.5),
    _case("nothing selected", 1, 2, 4, 32, 8, 16, 8, missing=1.1),
    _case("nothing selected, split", 1, 1, 4, 32, 8, 200, 130, missing=1.1),
    _case("prefill", 2, 9, 4, 32, 16, 64, 48, missing=0.3),
    _case("odd sizes", 2, 3, 17, 13, 6, 37, 29, missing=0.2),
    _case("wide", 1, 2, 20, 512, 64, 70, 66),
    _case("no rotary part", 1, 2, 3, 16, 0, 20, 11),
    _case("more heads than a block", 1, 2, 70, 20, 4, 40, 33, missing=0.1),
    _case("64 heads a program", 2, 8, 40, 20, 4, 40, 30, missing=0.1),
    _case("64 heads a program, split", 2, 8, 33, 16, 4, 90, 70, missing=0.1),
    _case("many tokens, not split", 1, 66, 2, 16, 4, 90, 70, missing=0.1),
]


SAMPLED = Sampled(
    {"B": 100, "S": 600, "K": 4096, "H": 130, "D": 600, "C": 300_000},
    attributes=lambda r: {"value_width": r.choice((16, 512)), "scale": 1.0},
)
