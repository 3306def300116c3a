"""What a linear layer with NVFP4 weights costs: half a byte a weight, and a scale for 16."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    # The largest of a layer: what attention is projected back with.
    return {
        "in_features": config.num_attention_heads * config.v_head_dim,
        "out_features": config.hidden_size,
    }


COST = Cost(
    bytes=(
        "out_features * (in_bytes + in_groups) + 4 + ITEMSIZE * T * (in_features + out_features)"
    ),
    operations="2 * T * in_features * out_features",
    sizes=sizes,
    narrow=True,
)
