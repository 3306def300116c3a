"""What FP8 and NVFP4 bytes mean, in plain PyTorch: for the references."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128  # rows and columns of an FP8 scale
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def e4m3_values(codes: Tensor) -> Tensor:
    """Bytes int8 → float32 of the same shape."""
    return codes.contiguous().view(torch.float8_e4m3fn).float()


def dequantize_fp8(codes: Tensor, scale: Tensor) -> Tensor:
    """codes int8 [out, in], scale [⌈out/128⌉, ⌈in/128⌉] → float32 [out, in]."""
    rows, columns = codes.shape
    wide = scale.repeat_interleave(BLOCK, 1)[:, :columns]
    return e4m3_values(codes) * wide.repeat_interleave(BLOCK, 0)[:rows]


def dequantize_nvfp4(codes: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    """codes int8 [out, in/2], scale int8 [out, in/16], global_scale [] → float32 [out, in]."""
    table = torch.tensor(E2M1)
    pairs = torch.stack([codes & 15, (codes >> 4) & 15], dim=-1).flatten(-2)  # low bits first
    return table[pairs.long()] * e4m3_values(scale).repeat_interleave(16, 1) * global_scale
