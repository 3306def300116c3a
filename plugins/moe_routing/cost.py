"""What MoE routing costs: logits and bias, indices and weights; no products."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    if "sparse" not in config.mlp_layer_types:
        return None
    return {
        "E": config.n_routed_experts,
        "n_group": config.n_group,
        "topk_group": config.topk_group,
        "top_k": config.num_experts_per_tok,
    }


COST = Cost(
    bytes="4 * (T * E + E + 2 * T * k)",
    operations="0",
    sizes=sizes,
)
