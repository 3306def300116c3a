"""What MoE experts with NVFP4 weights cost: half a byte a weight, and a scale for 16."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    if "sparse" not in config.mlp_layer_types:
        return None
    return {
        "E": config.n_routed_experts,
        "gate_and_up": 2 * config.moe_intermediate_size,
        "hidden": config.hidden_size,
        "k": config.num_experts_per_tok,
    }


COST = Cost(
    bytes=(
        "min(E, T * k) * 3 * (hidden * gate_and_up // 4 + hidden * gate_and_up // 32 + 4)"
        " + 2 * T * hidden * ITEMSIZE"
    ),
    operations="3 * T * k * hidden * gate_and_up",
    sizes=sizes,
    narrow=True,
)
