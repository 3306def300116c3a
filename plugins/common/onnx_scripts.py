"""What function bodies that are written with onnxscript share."""
# mypy: ignore-errors

from __future__ import annotations

import onnx
from onnxscript import OnnxFunction, values

from glm_trt.plugins.common.contract import DOMAIN, VERSION
from glm_trt.plugins.common.onnx_text import OPSET

GLM_TRT = values.Opset(DOMAIN, VERSION)


def to_function(script: OnnxFunction) -> onnx.FunctionProto:
    """The body at the opset of the exported graphs."""
    function = script.to_function_proto()
    for entry in function.opset_import:
        if entry.domain == "":
            entry.version = OPSET
    return function


def then(first: OnnxFunction, second: OnnxFunction) -> onnx.FunctionProto:
    """A body that does `first`, and with what that gives the same as `second`.

    The leading inputs of both are the same; the others of `second` are the outputs of `first`.
    """
    made, added = to_function(first), second.to_function_proto()
    shared = len(added.input) - len(made.output)
    names = dict(zip(added.input[:shared], made.input[:shared], strict=True))
    names |= dict(zip(added.input[shared:], made.output, strict=True))
    for node in added.node:
        copy = made.node.add()
        copy.CopyFrom(node)
        copy.name = f"then_{node.name}"
        copy.input[:] = [names.get(name, f"then_{name}") for name in node.input]
        copy.output[:] = [f"then_{name}" for name in node.output]
    made.output[:] = [f"then_{name}" for name in added.output]
    return made
