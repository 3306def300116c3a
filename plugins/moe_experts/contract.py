"""The contract of MoE experts."""

from __future__ import annotations

from glm_trt.plugins.common.contract import Contract, Port, StackedExperts

CONTRACT = Contract(
    name="MoeExperts",
    torch_name="moe_experts",
    doc="Sum over a token's experts of weight * down(silu(gate x) * up x).",
    inputs=(
        Port("x", ("T", "hidden")),
        Port("indices", ("T", "k"), "int32"),
        Port("weights", ("T", "k"), "float32"),
        Port("gate_up", ("E", "2I", "hidden")),
        Port("down", ("E", "hidden", "I")),
    ),
    outputs=(Port("y", ("T", "hidden")),),
    attributes={},
    tolerance={"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2},
    form=StackedExperts(linear=""),
)
