"""Test cases of the indexer top-k: small integers, whose scores are exact in every dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled


def _case(
    name: str, batch: int, length: int, capacity: int, index_topk: int, past: list[int],
    heads: int = 4, width: int = 8, largest: int = 3,
) -> OperatorCase:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        def integers(*shape: int) -> Tensor:
            return torch.randint(-largest, largest + 1, shape, generator=generator).float()

        keys = integers(batch, 1, capacity, width)
        for b, seen in enumerate(past):  # what is not visible must not matter
            keys[b, :, seen + length :] = float("nan")
        return [
            integers(batch, length, heads, width).to(dtype), keys.to(dtype),
            integers(batch, length, heads) / 4, torch.tensor(past, dtype=torch.int64),
        ]  # fmt: skip

    return OperatorCase(name, {"index_topk": index_topk, "scale": 0.25}, make)


CASES = [
    _case("decode", 1, 1, 40, 8, [30]),
    _case("no token", 1, 0, 16, 4, [3]),
    _case("first token", 1, 1, 16, 4, [0]),
    _case("prefill", 1, 21, 32, 5, [0]),
    _case("batch", 3, 2, 50, 7, [0, 20, 48]),
    _case("few visible", 2, 3, 64, 32, [1, 9]),
    _case("one selected", 1, 5, 33, 1, [11]),
    _case("more than the capacity", 2, 4, 16, 100, [0, 12]),
    _case("exactly the capacity", 1, 3, 16, 16, [13]),
    _case("odd sizes", 2, 3, 37, 11, [30, 5], heads=3, width=9),
    _case("all scores tied", 1, 4, 40, 6, [30], largest=0),
    _case("many ties", 2, 6, 300, 64, [200, 294], heads=1, largest=1),
    _case("wide", 1, 2, 130, 16, [120], heads=32, width=128, largest=1),
    _case("prefill, batch", 2, 6, 40, 9, [3, 30], heads=5),
    # Selections that several programs share.
    _case("shared", 1, 1, 5000, 512, [4990], heads=2, largest=2),
    _case("shared, batch", 3, 1, 5000, 300, [100, 2100, 4999], heads=1),
    _case("shared, programs with nothing", 1, 2, 5000, 64, [700], heads=1),
    _case("shared, all scores tied", 1, 1, 5000, 1500, [4000], heads=1, largest=0),
    _case("shared, one selected", 1, 1, 4100, 1, [4099], heads=1),
]


SAMPLED = Sampled(
    {"B": 100, "S": 600, "H": 64, "D": 128, "C": 300_000},
    attributes=lambda r: {"index_topk": r.choice((64, 2048)), "scale": 1.0},
)
