"""Test cases of linear attention: every rule, both decays, groups, absent inputs, odd sizes."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_trt.plugins.common.cases import OperatorCase, Sampled, Sizes


def _case(
    name: str, rule: str, batch: int, length: int, heads: int, dk: int, dv: int, *, group: int = 1,
    decay: str = "head", beta: str = "head", past: bool = True, same_state: bool = False,
    scale: float = 0.0, strength: float = 0.5,
) -> OperatorCase:  # fmt: skip
    """`decay` and `beta` are "head", "channel" or "one", and what the rule does not use is absent;
    `same_state`: a state of the block's dtype, not float32; `strength` of the decay.
    """

    def make(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor | None]:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        query = random(batch, length, heads * group * dk)
        key = F.normalize(random(batch, length, heads, dk), dim=-1).flatten(2)
        value = random(batch, length, heads * dv)
        state = random(batch, heads, dk, dv) if past else None
        if state is not None and same_state:
            state = state.to(dtype)
        g = -random(batch, length, heads * (dk if decay == "channel" else 1)).abs() * strength
        b = random(batch, length, 1 if beta == "one" else heads).sigmoid()
        return [
            query.to(dtype), key.to(dtype), value.to(dtype), state,
            g.to(dtype) if "gated" in rule else None, b.to(dtype) if "delta" in rule else None,
        ]  # fmt: skip

    attributes = {"q_num_heads": heads * group, "kv_num_heads": heads, "update_rule": rule,
                  "scale": scale}  # fmt: skip
    return OperatorCase(name, attributes, make)


CASES = [
    *(
        _case(f"{rule}, {length} tokens", rule, 2, length, 2, 20, 12, scale=0.4)
        for rule in ("linear", "gated", "delta", "gated_delta")
        for length in (1, 3, 37)
    ),
    _case("no token", "gated_delta", 1, 0, 2, 16, 16),
    _case("no token, no state", "gated_delta", 1, 0, 2, 16, 16, past=False),
    _case("decode", "gated_delta", 3, 1, 2, 32, 32),
    _case("decode, no state", "gated_delta", 1, 1, 2, 32, 48, past=False),
    _case("decode, state as the block", "gated_delta", 2, 1, 3, 32, 16, same_state=True),
    _case("decode, per channel", "gated_delta", 2, 2, 2, 24, 40, decay="channel"),
    _case("decode, groups", "gated", 1, 2, 2, 16, 16, group=3),
    _case("one beta for all heads", "delta", 1, 5, 3, 16, 16, beta="one"),
    _case("prefill", "gated_delta", 1, 65, 2, 32, 48),
    _case("prefill, no state", "gated_delta", 2, 64, 1, 16, 16, past=False),
    _case("prefill, state as the block", "gated_delta", 1, 40, 2, 32, 16, same_state=True),
    _case("prefill, per channel", "gated_delta", 1, 70, 2, 24, 20, decay="channel"),
    _case("prefill, gated per channel", "gated", 2, 33, 1, 16, 16, decay="channel", group=2),
    _case("prefill, groups", "delta", 1, 50, 2, 16, 24, group=2, beta="one"),
    _case("prefill, strong decay", "gated_delta", 1, 66, 2, 16, 16, strength=60.0),
    _case("prefill, strong decay per channel", "gated_delta", 1, 66, 1, 16, 16, decay="channel",
          strength=60.0),
    _case("wide", "gated_delta", 1, 34, 1, 128, 80),
    _case("wider than chunks can be", "gated_delta", 1, 34, 1, 200, 16),
    _case("one channel", "gated_delta", 1, 20, 2, 1, 1),
]  # fmt: skip


def _attributes(r: random.Random) -> dict[str, Any]:
    heads = r.choice((1, 2, 4, 16))
    return {"kv_num_heads": heads, "q_num_heads": heads * r.choice((1, 2, 3)), "scale": 1.0,
            "update_rule": r.choice(("gated", "gated_delta"))}  # fmt: skip


def _axes(sizes: Sizes, attributes: dict[str, Any]) -> Sizes:
    heads, dk, dv = attributes["kv_num_heads"], sizes["dk"], sizes["dv"]
    decays = heads if attributes["update_rule"] == "gated" else heads * dk
    return {"H": heads, "QW": attributes["q_num_heads"] * dk, "KW": heads * dk, "VW": heads * dv,
            "OW": attributes["q_num_heads"] * dv, "G": decays, "R": heads}  # fmt: skip


SAMPLED = Sampled({"B": 20, "S": 600, "dk": 256, "dv": 256}, {}, _attributes, _axes)
