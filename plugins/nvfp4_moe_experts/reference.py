"""The naive reference, in the layout that ModelOpt writes. Its `input_scale` is for
quantised activations, which are not: they stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.model.dequantize import dequantize_nvfp4
from glm_trt.model.operators import Product, sum_experts


def reference(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    gate_up_global: Tensor,
    down: Tensor,
    down_scale: Tensor,
    down_global: Tensor,
) -> Tensor:
    """x [T, hidden], indices, weights [T, k], gate_up int8 [E, 2I, hidden/2] (gate rows first),
    its scales int8 [E, 2I, hidden/16] and [E, 2], down int8 [E, hidden, I/2], its scales int8
    [E, hidden, I/16] and [E] → [T, hidden].
    """
    width = gate_up.shape[1] // 2

    def of(expert: int) -> tuple[Product, Product]:
        codes, scale, both = gate_up[expert], gate_up_scale[expert], gate_up_global[expert]
        gate = dequantize_nvfp4(codes[:width], scale[:width], both[0])
        up = dequantize_nvfp4(codes[width:], scale[width:], both[1])
        last = dequantize_nvfp4(down[expert], down_scale[expert], down_global[expert])
        return lambda x: torch.cat([x @ gate.T, x @ up.T], dim=-1), lambda x: x @ last.T

    return sum_experts(x.float(), indices, weights, of).to(x.dtype)
