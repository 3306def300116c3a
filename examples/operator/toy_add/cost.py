"""What ToyAdd costs: both inputs read, the output written, a product and a sum an element."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, Sizes


def sizes(config: ModelConfig) -> Sizes | None:
    """As in `Cost`."""
    return {"width": config.hidden_size}


COST = Cost(bytes="3 * T * width * ITEMSIZE", operations="2 * T * width", sizes=sizes)
