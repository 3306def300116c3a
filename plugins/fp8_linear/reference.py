"""The naive reference. The quantisation of activations is that of DeepSeek-V3
(arXiv 2412.19437, section 3.3.2): one scale a token and 128 inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.model.dequantize import BLOCK, dequantize_fp8, e4m3_values


def reference(x: Tensor, weight: Tensor, scale: Tensor, *, quantize_activations: int) -> Tensor:
    """x [T, in], weight int8 [out, in], scale [⌈out/128⌉, ⌈in/128⌉] → [T, out]; float32 inside."""
    if not quantize_activations:
        return (x.float() @ dequantize_fp8(weight, scale).T).to(x.dtype)
    y = torch.zeros(x.shape[0], weight.shape[0])
    for block, first in enumerate(range(0, x.shape[1], BLOCK)):
        group = x[:, first : first + BLOCK].float()  # [T, 128]
        s = group.abs().amax(1, keepdim=True).clamp(min=1e-10) / 448  # [T, 1]
        quantized = (group / s).to(torch.float8_e4m3fn).float()
        rows = scale[:, block].repeat_interleave(BLOCK)[: weight.shape[0]]  # [out]
        y += quantized @ e4m3_values(weight[:, first : first + BLOCK]).T * (s * rows)
    return y.to(x.dtype)
