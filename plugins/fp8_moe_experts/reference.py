"""The naive reference. Gate and up rows have scales of their own, as the checkpoint
quantises them apart: no block lies across both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.model.dequantize import dequantize_fp8
from glm_trt.model.operators import Product, sum_experts


def reference(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
) -> Tensor:
    """x [T, hidden], indices, weights [T, k], gate_up int8 [E, 2I, hidden] (gate rows first),
    gate_up_scale [E, 2, ⌈I/128⌉, ⌈hidden/128⌉], down int8 [E, hidden, I], down_scale → [T, hidden].
    """
    width = down.shape[2]

    def of(expert: int) -> tuple[Product, Product]:
        gate = dequantize_fp8(gate_up[expert, :width], gate_up_scale[expert, 0])
        up = dequantize_fp8(gate_up[expert, width:], gate_up_scale[expert, 1])
        last = dequantize_fp8(down[expert], down_scale[expert])
        return lambda x: torch.cat([x @ gate.T, x @ up.T], dim=-1), lambda x: x @ last.T

    return sum_experts(x.float(), indices, weights, of).to(x.dtype)
