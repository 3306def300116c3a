"""What sparse MLA costs: the entries that each token selects."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    if not {"indexed", "shared"} & set(config.attention_kinds):
        return None
    return {
        "H": config.num_attention_heads,
        "D": config.kv_lora_rank + config.qk_rope_head_dim,
        "value_width": config.kv_lora_rank,
        "K": config.index_topk,
    }


COST = Cost(
    bytes="ITEMSIZE * B * S * (K * D + H * (D + R)) + 4 * B * S * K",
    operations="2 * B * S * K * H * (D + R)",
    sizes=sizes,
)
