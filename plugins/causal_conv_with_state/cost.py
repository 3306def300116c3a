"""What the causal convolution costs: the columns read and written, state and weights."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    if "linear" not in config.attention_kinds:
        return None
    keys = 2 * config.linear_num_key_heads * config.linear_key_head_dim
    return {
        "C": keys + config.linear_num_value_heads * config.linear_value_head_dim,
        "K": config.linear_conv_kernel_dim,
        "activation": 1,  # silu
    }


COST = Cost(
    bytes="ITEMSIZE * C * (2 * B * L + 2 * B * P + K)",
    operations="2 * B * C * L * K",
    sizes=sizes,
)
