"""What the references of MoE experts with quantised weights share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


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
