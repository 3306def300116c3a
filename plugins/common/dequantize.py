"""What FP8 and NVFP4 bytes mean, in plain PyTorch: for the references."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # rows and columns of an FP8 scale
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def e4m3_values(codes: Tensor) -> Tensor:
    """Bytes int8 → float32 of the same shape."""
    return codes.contiguous().view(torch.float8_e4m3fn).float()


def e4m3_of_every_byte() -> Tensor:
    """The values of the bytes 0 … 255 [256]."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


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


def sum_experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    dequantize: Callable[[int], tuple[Tensor, Tensor, Tensor]],
) -> Tensor:
    """Σ weight · down(silu(gate x) · up x) over each token's experts, in float32, in x's dtype.

    x [T, hidden], indices, weights [T, k]; `dequantize` gives one expert's gate and up [I, hidden]
    and down [hidden, I]: only those hit, one at a time.
    """
    y = torch.zeros(x.shape, dtype=torch.float32)
    for expert in indices.unique().tolist():
        gate, up, down = dequantize(expert)
        token, slot = torch.where(indices == expert)
        given = x[token].float()
        inner = F.silu(given @ gate.T) * (given @ up.T)
        y.index_add_(0, token, weights[token, slot].unsqueeze(1) * (inner @ down.T))
    return y.to(x.dtype)
