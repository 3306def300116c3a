"""A linear layer with NVFP4 weights in standard operators."""

from __future__ import annotations

import onnx

from glm_trt.plugins.common.onnx_text import parsed

# x [T, in], weight int8 [out, in/2], scale int8 [out, in/16], global_scale [1] → [T, out].
_BODY = """
Nvfp4Linear (x, weight, scale, global_scale) => (y) {
    bytes = Cast <to = 6> (weight)
    pairs = Gather <axis = 0> (e2m1_table, bytes)
    scale_bytes = Cast <to = 6> (scale)
    scales = Gather <axis = 0> (e4m3_table, scale_bytes)

    # [out, in/2, 2] and [out, in/16] as [out, in/16, 16] and [out, in/16, 1].
    scale_shape = Shape (scale)
    group = Constant <value_ints = [16]> ()
    by_group = Concat <axis = 0> (scale_shape, group)
    grouped = Reshape (pairs, by_group)
    last = Constant <value_ints = [-1]> ()
    scale_of_group = Unsqueeze (scales, last)
    scaled = Mul (grouped, scale_of_group)
    out = Shape <start = 0, end = 1> (weight)
    in = Shape <start = 1, end = 2> (x)
    whole = Concat <axis = 0> (out, in)
    values = Reshape (scaled, whole)
    dense = Mul (values, global_scale)

    given = Cast <to = 1> (x)
    product = Gemm <transB = 1> (given, dense)
    y = CastLike (product, x)
}
"""


def body() -> onnx.FunctionProto:
    """The operator as standard ones."""
    return parsed(_BODY)
