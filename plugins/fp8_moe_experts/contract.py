"""The contract of MoE experts with FP8 weights."""

from __future__ import annotations

from glm_trt.plugins.common.contract import Contract, Port, StackedExperts

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
    form=StackedExperts(linear="fp8_linear"),
)
