"""MoE experts with NVFP4 weights: e2m1 codes, an e4m3 scale a row and 16 inputs, global ones.

Contract, and the naive reference, in the layout that ModelOpt writes. Its `input_scale` is for
quantised activations, which are not: they stay as they are.
"""

from __future__ import annotations

from torch import Tensor

from glm_trt.model.dequantize import dequantize_nvfp4
from glm_trt.plugins.common.contract import Contract, Port
from glm_trt.plugins.common.sum_experts import sum_experts

CONTRACT = Contract(
    name="Nvfp4MoeExperts",
    torch_name="nvfp4_moe_experts",
    doc="MoeExperts with W = e2m1(codes) * e4m3(scale) * global scale; a byte holds two weights, "
    "the first in its low bits. Global scales of gate_up: of gate, then of up.",
    inputs=(
        Port("x", ("T", "hidden")),
        Port("indices", ("T", "k"), "int32"),
        Port("weights", ("T", "k"), "float32"),
        Port("gate_up", ("E", "gate_and_up", "hidden_bytes"), "int8"),
        Port("gate_up_scale", ("E", "gate_and_up", "hidden_groups"), "int8"),
        Port("gate_up_global", ("E", "both"), "float32"),
        Port("down", ("E", "hidden", "I_bytes"), "int8"),
        Port("down_scale", ("E", "hidden", "I_groups"), "int8"),
        Port("down_global", ("E",), "float32"),
    ),
    outputs=(Port("y", ("T", "hidden")),),
    attributes={},
    derived={
        "both": "2",
        "hidden_bytes": "hidden // 2",
        "hidden_groups": "hidden // 16",
        "I_bytes": "gate_and_up // 4",
        "I_groups": "gate_and_up // 32",
    },
    tolerance={"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2},
)


def reference(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    gate_up_global: Tensor,
    down: Tensor,
    down_scale: Tensor,
    down_global: Tensor,
) -> Tensor:
    """x [T, hidden], indices, weights [T, k], gate_up int8 [E, 2I, hidden/2] (gate rows first),
    its scales int8 [E, 2I, hidden/16] and [E, 2], down int8 [E, hidden, I/2], its scales int8
    [E, hidden, I/16] and [E] → [T, hidden].
    """
    width = gate_up.shape[1] // 2

    def dequantize(expert: int) -> tuple[Tensor, Tensor, Tensor]:
        codes, scale, both = gate_up[expert], gate_up_scale[expert], gate_up_global[expert]
        gate = dequantize_nvfp4(codes[:width], scale[:width], both[0])
        up = dequantize_nvfp4(codes[width:], scale[width:], both[1])
        return gate, up, dequantize_nvfp4(down[expert], down_scale[expert], down_global[expert])

    return sum_experts(x, indices, weights, dequantize)
