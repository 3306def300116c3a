"""ToyAdd in standard operators, for any runtime."""

from __future__ import annotations

import onnx

from glm_trt.plugins.common.onnx_text import parsed

_BODY = """
ToyAdd <scale> (x, other) => (y) {
    factor = Constant <value_float: float = @scale> ()
    typed = CastLike (factor, x)
    scaled = Mul (other, typed)
    y = Add (x, scaled)
}
"""


def body() -> onnx.FunctionProto:
    """The operator as standard ones."""
    return parsed(_BODY)
