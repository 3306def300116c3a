"""What NVFP4 MoE experts launch."""

from __future__ import annotations

from glm_trt.plugins.common.quantized_launches import experts_launches
from glm_trt.plugins.nvfp4_moe_experts.contract import CONTRACT

LAUNCHES = experts_launches(
    CONTRACT,
    "nvfp4",
    gate_up=("gate_up", "gate_up_scale", "gate_up_global"),
    down=("down", "down_scale", "down_global"),
    inner="(gate_and_up // 2)",
    unit=32,  # 16 bytes
    odd="0",
    e4m3=False,
    limits=(
        ("hidden % 32 == 0", "hidden in multiples of 32"),
        ("gate_and_up % 64 == 0", "experts' width in multiples of 32"),
    ),
)
