"""The naive reference after transformers' `GlmMoeDsaExperts`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [T, hidden], indices [T, k], weights [T, k], gate_up [E, 2I, hidden] (gate rows first),
    down [E, hidden, I] → [T, hidden]; float32 inside.
    """
    y = torch.zeros(x.shape, dtype=torch.float32)
    width = down.shape[2]
    for t in range(x.shape[0]):
        for slot in range(indices.shape[1]):
            expert = int(indices[t, slot])
            both = gate_up[expert].float() @ x[t].float()
            inner = F.silu(both[:width]) * both[width:]
            y[t] += weights[t, slot] * (down[expert].float() @ inner)
    return y.to(x.dtype)
