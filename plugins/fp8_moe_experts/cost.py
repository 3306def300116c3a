"""What MoE experts with FP8 weights cost: a byte a weight, and a scale for 128 × 128."""

from __future__ import annotations

from glm_trt.plugins.common.cost import Cost, sizes_of_experts

COST = Cost(
    bytes=(
        "min(E, T * k) * 3 * (hidden * I + 4 * I_blocks * hidden_blocks)"
        " + 2 * T * hidden * ITEMSIZE"
    ),
    operations="6 * T * k * hidden * I",
    sizes=sizes_of_experts,
    narrow=True,
)
