"""What causal MLA costs: all entries once, and products with what each query sees."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    if "full" not in config.attention_kinds:
        return None
    return {
        "H": config.num_attention_heads,
        "D": config.kv_lora_rank + config.qk_rope_head_dim,
        "value_width": config.kv_lora_rank,
    }


COST = Cost(
    bytes="ITEMSIZE * B * (C * D + S * H * (D + R))",
    operations="2 * B * H * (D + R) * (S * C - S * (S - 1) // 2)",
    sizes=sizes,
)
