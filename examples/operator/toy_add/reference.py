"""The naive reference."""

from __future__ import annotations

from torch import Tensor


def reference(x: Tensor, other: Tensor, *, scale: float) -> Tensor:
    """x, other [T, width] → [T, width]; float32 inside, or float64 where they are."""
    wide = x if x.element_size() == 8 else x.float()
    return (wide + scale * other).to(x.dtype)
