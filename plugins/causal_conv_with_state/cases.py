"""Test cases of the causal convolution: widths, lengths around the width, absent inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled


def _case(
    name: str, batch: int, channels: int, length: int, width: int, *, bias: bool = True,
    past: bool = True, activation: str = "silu",
) -> OperatorCase:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        return [
            random(batch, channels, length),
            random(channels, 1, width),
            random(channels) if bias else None,
            random(batch, channels, width - 1) if past else None,
        ]

    return OperatorCase(name, {"activation": activation}, make)


CASES = [
    _case("decode", 3, 40, 1, 4),
    _case("decode, many channels", 1, 1100, 1, 4, bias=False),
    _case("no token", 2, 5, 0, 4),
    _case("no token, no state", 1, 5, 0, 3, past=False),
    _case("shorter than the state", 2, 7, 2, 5),
    _case("as long as the state", 1, 7, 3, 4, activation="none"),
    _case("prefill", 2, 33, 70, 4),
    _case("prefill, no state", 1, 16, 130, 4, past=False, bias=False),
    _case("prefill, long", 1, 3, 700, 2, activation="swish"),
    _case("width 1", 1, 9, 6, 1, activation="none"),
    _case("width 1, no state", 1, 9, 6, 1, past=False, bias=False, activation="none"),
    _case("wide", 1, 5, 20, 37),
    _case("nothing but input and weight", 1, 5, 9, 3, past=False, bias=False, activation="none"),
]


SAMPLED = Sampled(
    {"B": 20, "C": 9000, "L": 600, "K": 8}, attributes=lambda _: {"activation": "silu"}
)
