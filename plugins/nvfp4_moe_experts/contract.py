"""The contract of MoE experts with NVFP4 weights."""

from __future__ import annotations

from glm_trt.plugins.common.contract import Contract, Port, StackedExperts

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
    form=StackedExperts(linear="nvfp4_linear"),
)
