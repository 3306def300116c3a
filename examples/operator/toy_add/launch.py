"""What ToyAdd launches."""

from __future__ import annotations

from glm_trt.plugins.common.launch import Launch, Launches
from glm_trt.plugins.toy_add.contract import CONTRACT

LAUNCHES = Launches(
    CONTRACT,
    steps=(
        Launch(
            "toy_add",
            grid=("cdiv(T * width, BLOCK)", "1", "1"),
            arguments=("x", "other", "y", "T * width", "scale"),
            configs={"*": {"BLOCK": 128, "num_warps": 4, "num_stages": 1}},
        ),
    ),
    limits=(("width >= 1", "at least one column"),),
)
