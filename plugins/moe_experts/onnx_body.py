"""MoE experts in standard operators: right everywhere, but every expert is computed."""
# mypy: ignore-errors

from __future__ import annotations

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op

from glm_trt.plugins.common.onnx_scripts import GLM_TRT, to_function


@script(GLM_TRT, default_opset=op)
def MoeExperts(x, indices, weights, gate_up, down):
    tokens = op.Shape(x, start=0, end=1)
    experts = op.Shape(gate_up, start=0, end=1)
    empty = op.Expand(op.Constant(value_float=0.0), op.Concat(tokens, experts, axis=0))
    combine = op.ScatterElements(empty, op.Cast(indices, to=7), weights, axis=1)
    hit = op.ScatterElements(
        empty, op.Cast(indices, to=7), op.Add(op.Mul(weights, 0.0), 1.0), axis=1
    )
    both = op.MatMul(
        op.Unsqueeze(x, op.Constant(value_ints=[0])), op.Transpose(gate_up, perm=[0, 2, 1])
    )
    gate, up = op.Split(both, axis=-1, num_outputs=2)
    inner = op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
    parts = op.Cast(op.MatMul(inner, op.Transpose(down, perm=[0, 2, 1])), to=1)
    last = op.Constant(value_ints=[-1])
    scale = op.Unsqueeze(op.Transpose(combine, perm=[1, 0]), last)
    reached = op.Greater(op.Unsqueeze(op.Transpose(hit, perm=[1, 0]), last), 0.0)
    # Where, not a product: an expert that was not chosen may overflow, and inf times 0 is NaN.
    chosen = op.Where(reached, op.Mul(parts, scale), op.Constant(value_float=0.0))
    return op.CastLike(op.ReduceSum(chosen, op.Constant(value_ints=[0]), keepdims=0), x)


def body() -> onnx.FunctionProto:
    """The operator as standard ones."""
    return to_function(MoeExperts)
