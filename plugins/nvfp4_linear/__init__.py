"""Linear layer with NVFP4 weights: e2m1 codes, an e4m3 scale a row and 16 inputs, a global one.

Contract, and the naive reference, in the layout that ModelOpt writes. Its `input_scale` is for
quantised activations, which are not: they stay as they are.
"""

from __future__ import annotations

from torch import Tensor

from glm_trt.model.dequantize import dequantize_nvfp4
from glm_trt.plugins.common.contract import Contract, Port

CONTRACT = Contract(
    name="Nvfp4Linear",
    torch_name="nvfp4_linear",
    doc="W x with W = e2m1(weight) * e4m3(scale) * global_scale; a byte holds two weights, the "
    "first in its low bits.",
    inputs=(
        Port("x", ("T", "in_features")),
        Port("weight", ("out_features", "in_bytes"), "int8"),
        Port("scale", ("out_features", "in_groups"), "int8"),
        Port("global_scale", ("one",), "float32"),
    ),
    outputs=(Port("y", ("T", "out_features")),),
    attributes={},
    derived={"in_bytes": "in_features // 2", "in_groups": "in_features // 16", "one": "1"},
    tolerance={"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3},
)


def reference(x: Tensor, weight: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    """x [T, in], weight int8 [out, in/2], scale int8 [out, in/16], global_scale [1] → [T, out]."""
    return (x.float() @ dequantize_nvfp4(weight, scale, global_scale).T).to(x.dtype)
