"""Linear layer with FP8 weights: e4m3 bytes, one scale a block of 128 × 128.

Contract, and the naive reference. The quantisation of activations is that of DeepSeek-V3
(arXiv 2412.19437, section 3.3.2): one scale a token and 128 inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.model.dequantize import BLOCK, dequantize_fp8, e4m3_values
from glm_trt.plugins.common.contract import Contract, Port

CONTRACT = Contract(
    name="Fp8Linear",
    torch_name="fp8_linear",
    doc="W x with W = e4m3(weight) * scale of its block of 128 x 128; the last blocks may be "
    "partial. quantize_activations 1: x = e4m3(x / s) * s first, s = max(max|x|, 1e-10) / 448 of "
    "each token's 128 inputs.",
    inputs=(
        Port("x", ("T", "in_features")),
        Port("weight", ("out_features", "in_features"), "int8"),
        Port("scale", ("out_blocks", "in_blocks"), "float32"),
    ),
    outputs=(Port("y", ("T", "out_features")),),
    attributes={"quantize_activations": int},
    derived={
        "out_blocks": "(out_features + 127) // 128",
        "in_blocks": "(in_features + 127) // 128",
    },
    tolerance={"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3},
)


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
