"""What the indexer's top-k costs: all keys once, and products with what each query sees."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    if "indexed" not in config.attention_kinds:
        return None
    return {
        "H": config.index_n_heads,
        "D": config.index_head_dim,
        "index_topk": config.index_topk,
    }


COST = Cost(
    bytes="B * (ITEMSIZE * D * (C + S * H) + 4 * S * (H + K))",
    operations="2 * B * H * D * (S * C - S * (S - 1) // 2)",
    sizes=sizes,
)
