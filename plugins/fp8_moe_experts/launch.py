"""What FP8 MoE experts launch."""

from __future__ import annotations

from glm_trt.plugins.common.quantized_launches import experts_launches
from glm_trt.plugins.fp8_moe_experts.contract import CONTRACT

LAUNCHES = experts_launches(
    CONTRACT,
    "fp8",
    gate_up=("gate_up", "gate_up_scale"),
    down=("down", "down_scale"),
    inner="I",
    unit=16,
    # Rows that are no multiple of 16 bytes admit no wide load.
    odd="hidden % 16 + I % 16 != 0",
    e4m3=True,
    limits=(),
)
