"""What linear attention costs: its float32 state read and written, and the tokens."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    if "linear" not in config.attention_kinds:
        return None
    # The convolution's keys are repeated: there are as many heads of them as of values.
    heads = config.linear_num_value_heads
    keys, values = heads * config.linear_key_head_dim, heads * config.linear_value_head_dim
    return {
        "q_num_heads": heads,
        "kv_num_heads": heads,
        "update_rule": 3,  # gated_delta
        "QW": keys,
        "KW": keys,
        "VW": values,
        "G": heads,
        "R": heads,
    }


COST = Cost(
    bytes=("2 * 4 * B * H * dk * dv + ITEMSIZE * B * S * (QW + KW + VW + OW + G + R)"),
    operations="8 * B * S * q_num_heads * dk * dv",
    sizes=sizes,
)
