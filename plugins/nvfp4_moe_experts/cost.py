"""What MoE experts with NVFP4 weights cost: half a byte a weight, and a scale for 16."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes, sizes_of_experts


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    found = sizes_of_experts(config)
    return found and {**found, "gate_and_up": 2 * found["I"]}


COST = Cost(
    bytes=(
        "min(E, T * k) * 3 * (hidden * gate_and_up // 4 + hidden * gate_and_up // 32 + 4)"
        " + 2 * T * hidden * ITEMSIZE"
    ),
    operations="3 * T * k * hidden * gate_and_up",
    sizes=sizes,
    narrow=True,
)
