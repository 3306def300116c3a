"""The naive reference, in the layout that ModelOpt writes. Its `input_scale` is for
quantised activations, which are not: they stay as they are.
"""

from __future__ import annotations

from torch import Tensor

from glm_trt.model.dequantize import dequantize_nvfp4


def reference(x: Tensor, weight: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    """x [T, in], weight int8 [out, in/2], scale int8 [out, in/16], global_scale [1] → [T, out]."""
    return (x.float() @ dequantize_nvfp4(weight, scale, global_scale).T).to(x.dtype)
