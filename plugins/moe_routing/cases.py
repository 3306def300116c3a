"""Test cases of MoE routing."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled


def _case(
    name: str, tokens: int, experts: int, top_k: int, n_group: int = 1, topk_group: int = 1,
    norm: int = 1, tied: bool = False,
) -> OperatorCase:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        logits = torch.randn(tokens, experts, generator=generator)
        bias = torch.randn(experts, generator=generator) * 0.1
        if tied:  # scores of exactly 0, 1/2 and 1, which every sigmoid agrees on, and exact sums
            logits = logits.round().clamp(-1, 1) * 200
            bias = torch.randint(0, 3, (experts,), generator=generator) / 4
        return [logits, bias]

    attributes = {"top_k": top_k, "n_group": n_group, "topk_group": topk_group,
                  "norm_topk_prob": norm, "routed_scaling_factor": 2.5}  # fmt: skip
    return OperatorCase(name, attributes, make)


CASES = [
    _case("plain", 5, 16, 4),
    _case("one token", 1, 256, 8),
    _case("no token", 0, 16, 4),
    _case("odd", 7, 37, 5, norm=0),
    _case("every expert", 3, 16, 16),
    _case("one expert", 4, 64, 1),
    _case("groups", 9, 32, 6, n_group=4, topk_group=2),
    _case("groups, odd size", 6, 21, 4, n_group=7, topk_group=3),
    _case("groups of one", 5, 8, 2, n_group=8, topk_group=3),
    _case("all groups kept", 4, 32, 6, n_group=4, topk_group=4),
    _case("ties", 40, 32, 8, tied=True),
    _case("tied groups", 40, 32, 6, n_group=8, topk_group=3, tied=True),
    _case("512 experts", 2, 512, 10),
]


SAMPLED = Sampled(
    {"T": 9000, "E": 512},
    attributes=lambda _: {"top_k": 4, "n_group": 1, "topk_group": 1, "norm_topk_prob": 1,
                          "routed_scaling_factor": 1.0},
)  # fmt: skip
