"""What MoE experts cost: the weights of the experts that are hit."""

from __future__ import annotations

from glm_trt.plugins.common.cost import Cost, sizes_of_experts

COST = Cost(
    bytes="ITEMSIZE * (min(E, T * k) * 3 * hidden * I + 2 * T * hidden)",
    operations="6 * T * k * hidden * I",
    sizes=sizes_of_experts,
)
