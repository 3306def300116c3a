"""ToyAdd in Triton: one program a block of elements."""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def toy_add(p_x, p_other, p_y, n, scale, BLOCK: tl.constexpr):
    """x, other → y, all of n elements; sums are float32."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o, mask=o < n, other=0.0).to(tl.float32)
    b_other = tl.load(p_other + o, mask=o < n, other=0.0).to(tl.float32)
    tl.store(p_y + o, (b_x + scale * b_other).to(p_y.dtype.element_ty), mask=o < n)
