"""What FP8 and NVFP4 bytes mean, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from glm_trt.model.quantization import FP8_BLOCK, NVFP4_GROUP

BLOCK = FP8_BLOCK[0]  # rows and columns of an FP8 scale
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def e4m3_values(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes int8 → values of the same shape."""
    return codes.contiguous().view(torch.float8_e4m3fn).to(dtype)


def dequantize_fp8(codes: Tensor, scale: Tensor) -> Tensor:
    """codes int8 [out, in], scale [⌈out/128⌉, ⌈in/128⌉] → [out, in] in the scale's dtype."""
    values = e4m3_values(codes, scale.dtype)
    by_row = scale.repeat_interleave(BLOCK, 0)[: codes.shape[0]]  # [out, ⌈in/128⌉]
    for block, columns in enumerate(values.split(BLOCK, dim=1)):  # views: no second copy
        columns *= by_row[:, block : block + 1]
    return values


def dequantize_nvfp4(codes: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    """codes int8 [out, in/2], scale int8 [out, in/16], global_scale [] or [1] → [out, in] in the
    global scale's dtype.
    """
    table = torch.tensor(E2M1, dtype=global_scale.dtype, device=codes.device)
    pairs = torch.stack([codes & 15, (codes >> 4) & 15], dim=-1).flatten(-2)  # low bits first
    scales = e4m3_values(scale, global_scale.dtype).repeat_interleave(NVFP4_GROUP, 1)
    return table[pairs.int()] * scales * global_scale
