"""Test cases of causal MLA: lengths about a block and a share; what nobody sees is NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled


def _case(
    name: str, length: int, heads: int, rank: int, rope: int, capacity: int, past: list[int],
    large: bool = False,
) -> OperatorCase:  # fmt: skip
    """`large`: scores in the hundreds, equal or far apart, so that they round no result."""

    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        shapes = (len(past), length, heads, rank + rope), (len(past), 1, capacity, rank + rope)
        query, cache = (torch.randn(shape, generator=generator) for shape in shapes)
        if large:
            query, cache = query.round() * 64, cache.round()
        for b, seen in enumerate(past):
            cache[b, :, seen + length :] = float("nan")
        return [query.to(dtype), cache.to(dtype), torch.tensor(past, dtype=torch.int64)]

    scale = 0.25 if large else (rank + rope) ** -0.5
    return OperatorCase(name, {"scale": scale, "value_width": rank}, make)


CASES = [
    _case("decode", 1, 4, 32, 8, 40, [20]),
    _case("no token", 0, 4, 32, 8, 16, [3]),
    _case("first token", 1, 3, 32, 8, 40, [0]),
    _case("prefill", 70, 3, 16, 4, 80, [0]),
    _case("prefill after a prefix, batch", 9, 5, 24, 8, 50, [0, 31, 41]),
    _case("odd sizes", 3, 17, 13, 6, 37, [29, 34]),
    _case("no rotary part", 2, 3, 16, 0, 20, [11]),
    _case("full capacity", 2, 4, 16, 4, 64, [62]),
    _case("a token is several blocks", 2, 70, 20, 4, 40, [33]),
    _case("a token is a block", 5, 64, 16, 4, 48, [11, 30]),
    _case("a token is a block, split", 1, 64, 16, 4, 300, [291, 63]),
    _case("wide", 2, 20, 512, 64, 70, [65]),
    _case("wide, split", 1, 64, 512, 64, 200, [180]),
    # Shares are of 64 entries at the least, or more in blocks of 16 or 32.
    _case("split", 1, 4, 32, 8, 300, [299]),
    _case("split, batch of lengths", 2, 5, 24, 10, 300, [290, 0, 130, 62]),
    _case("split, visible is one share", 1, 4, 16, 4, 256, [63]),
    _case("split, visible is a share and one", 1, 4, 16, 4, 256, [64]),
    _case("split, rows see parts of the last share", 8, 3, 16, 4, 200, [60, 124]),
    _case("split, capacity far above the length", 1, 4, 16, 4, 9000, [100]),
    _case("split, shares above the least", 1, 3, 16, 4, 640, [40 * b + 5 for b in range(16)]),
    _case("large scores", 3, 4, 16, 4, 90, [50], large=True),
    _case("large scores, split", 1, 4, 16, 4, 300, [280], large=True),
]


SAMPLED = Sampled(
    {"B": 100, "S": 600, "H": 130, "D": 600, "C": 300_000},
    attributes=lambda r: {"value_width": r.choice((16, 512)), "scale": 1.0},
)
