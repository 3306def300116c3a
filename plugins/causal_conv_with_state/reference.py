"""The naive reference: the convolution before Gated DeltaNet and Mamba."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, past_state: Tensor | None, *, activation: str
) -> tuple[Tensor, Tensor]:
    """x [B, C, L], weight [C, 1, K], bias [C], past_state [B, C, K-1] → y [B, C, L],
    present_state [B, C, K-1]: the last columns of past state and x together.
    """
    batch, channels, length = x.shape
    width = weight.shape[-1]
    past = x.new_zeros(batch, channels, width - 1) if past_state is None else past_state
    columns = torch.cat([past, x], dim=-1)  # [B, C, K-1+L]
    y = torch.zeros(batch, channels, length)
    for j in range(width):
        y += weight[:, 0, j, None].float() * columns[..., j : j + length].float()
    if bias is not None:
        y += bias[:, None].float()
    if activation != "none":
        y = F.silu(y)
    return y.to(x.dtype), columns[..., length:].clone()
