"""Test cases of FP8 linear layers: partial blocks, both paths, both kinds of activations."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled, fp8_weight


def _case(name: str, tokens: int, rows: int, columns: int, quantize: int = 0) -> OperatorCase:
    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        x = torch.randn(tokens, columns, generator=generator)
        x *= 10.0 ** torch.randn(tokens, 1, generator=generator)
        weight, scale = fp8_weight(generator, rows, columns)
        return [x.to(dtype), weight, scale]

    return OperatorCase(name, {"quantize_activations": quantize}, make)


CASES = [
    _case(f"{name}, {label}", tokens, rows, columns, quantize)
    for quantize, label in ((0, "plain"), (1, "quantised"))
    for name, tokens, rows, columns in (
        ("one token", 1, 130, 200),
        ("no token", 0, 130, 200),
        ("one block", 2, 128, 128),
        ("less than a block", 3, 5, 9),
        ("odd sizes", 9, 131, 203),
        ("576 rows", 2, 576, 144),
        ("more than a program reads at once", 1, 9, 2100),
        ("5 tokens", 5, 140, 272),
        ("17 tokens", 17, 200, 304),
        ("513 tokens", 513, 136, 144),
    )
]


SAMPLED = Sampled(
    {"T": 5000, "in_features": 7000, "out_features": 7000},
    attributes=lambda r: {"quantize_activations": r.choice((0, 1))},
)
