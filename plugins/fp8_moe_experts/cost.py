"""What MoE experts with FP8 weights cost: a byte a weight, and a scale for 128 × 128."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    if "sparse" not in config.mlp_layer_types:
        return None
    return {
        "E": config.n_routed_experts,
        "I": config.moe_intermediate_size,
        "hidden": config.hidden_size,
        "k": config.num_experts_per_tok,
    }


COST = Cost(
    bytes=(
        "min(E, T * k) * 3 * (hidden * I + 4 * I_blocks * hidden_blocks)"
        " + 2 * T * hidden * ITEMSIZE"
    ),
    operations="6 * T * k * hidden * I",
    sizes=sizes,
    narrow=True,
)
