"""What the Triton kernels share."""
# mypy: ignore-errors

from __future__ import annotations

import os

import triton
import triton.language as tl

# Under the interpreter `tl.dot` on bfloat16 operands is wrong (triton 3.7.1): it gets float32.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b):
    """[M, K] · [K, N] → float32 [M, N]: products exact in float32 (no TF32), sums in float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")
