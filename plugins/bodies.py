"""Standard-ONNX function bodies of the operators, so that any runtime runs the graphs.

They are decompositions to be right everywhere (also where TensorRT parses them), not fast ones.
"""

from __future__ import annotations

import onnx

from glm_trt.plugins.common.contract import DOMAIN
from glm_trt.plugins.folders import CONTRACTS, part_of


def body_of(operator: str) -> onnx.FunctionProto:
    """The function body of an operator, by the name of its folder."""
    found: onnx.FunctionProto = part_of(operator, "onnx_body").body()
    return found


def function_bodies() -> dict[str, onnx.FunctionProto]:
    """ONNX op type → its function body, at the opset of the exported graphs.

    Operators that ONNX defines have none.
    """
    return {c.name: body_of(name) for name, c in CONTRACTS.items() if c.domain == DOMAIN}
