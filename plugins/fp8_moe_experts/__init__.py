"""MoE experts with FP8 weights: e4m3 bytes, one scale a block of 128 × 128.

Contract, and the naive reference. Gate and up rows have scales of their own, as the checkpoint
quantises them apart: no block lies across both.
"""

from __future__ import annotations

from torch import Tensor

from glm_trt.model.dequantize import dequantize_fp8
from glm_trt.plugins.common.contract import Contract, Port
from glm_trt.plugins.common.sum_experts import sum_experts

CONTRACT = Contract(
    name="Fp8MoeExperts",
    torch_name="fp8_moe_experts",
    doc="MoeExperts with W = e4m3(bytes) * scale of its block of 128 x 128; the last blocks may be "
    "partial. scales of gate_up: of gate, then of up.",
    inputs=(
        Port("x", ("T", "hidden")),
        Port("indices", ("T", "k"), "int32"),
        Port("weights", ("T", "k"), "float32"),
        Port("gate_up", ("E", "2I", "hidden"), "int8"),
        Port("gate_up_scale", ("E", "both", "I_blocks", "hidden_blocks"), "float32"),
        Port("down", ("E", "hidden", "I"), "int8"),
        Port("down_scale", ("E", "hidden_blocks", "I_blocks"), "float32"),
    ),
    outputs=(Port("y", ("T", "hidden")),),
    attributes={},
    derived={
        "2I": "2 * I",
        "both": "2",
        "I_blocks": "(I + 127) // 128",
        "hidden_blocks": "(hidden + 127) // 128",
    },
    tolerance={"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2},
)


def reference(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
) -> Tensor:
    """x [T, hidden], indices, weights [T, k], gate_up int8 [E, 2I, hidden] (gate rows first),
    gate_up_scale [E, 2, ⌈I/128⌉, ⌈hidden/128⌉], down int8 [E, hidden, I], down_scale → [T, hidden].
    """
    width = down.shape[2]

    def dequantize(expert: int) -> tuple[Tensor, Tensor, Tensor]:
        gate = dequantize_fp8(gate_up[expert, :width], gate_up_scale[expert, 0])
        up = dequantize_fp8(gate_up[expert, width:], gate_up_scale[expert, 1])
        return gate, up, dequantize_fp8(down[expert], down_scale[expert])

    return sum_experts(x, indices, weights, dequantize)
