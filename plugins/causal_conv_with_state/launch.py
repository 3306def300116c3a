"""What the causal convolution launches: one kernel, with blocks for one token or for many."""

from __future__ import annotations

from glm_trt.plugins.causal_conv_with_state.contract import CONTRACT
from glm_trt.plugins.common.launch import Launch, Launches


def _convolve(when: str, channels: int, positions: int, aligned: tuple[str, ...] = ()) -> Launch:
    return Launch(
        "convolve",
        when=when,
        grid=("cdiv(C, BLOCK_C)", "max(1, cdiv(L, BLOCK_L))", "B"),
        arguments=(
            "input", "weight", "bias", "past_state", "output", "present_state", "C", "L", "K",
            "has_bias", "has_past_state", "activation > 0",
        ),
        configs={
            "*": {"BLOCK_C": channels, "BLOCK_L": positions, "num_warps": 4, "num_stages": 1}
        },
        aligned=aligned,
    )  # fmt: skip


LAUNCHES = Launches(
    CONTRACT,
    steps=(_convolve("L <= 8", 256, 1), _convolve("L > 8", 4, 256, aligned=("L",))),
    limits=(("K >= 1", "a kernel of at least one column"), ("B <= 65535", "at most 65535 rows")),
)
