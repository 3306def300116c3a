"""Sparse MLA in standard operators: dense attention under a mask."""
# mypy: ignore-errors

from __future__ import annotations

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op

from glm_trt.plugins.common.onnx_scripts import GLM_TRT, to_function


@script(GLM_TRT, default_opset=op)
def SparseMla(query, cache, indices, scale: float, value_width: int):
    one = op.Constant(value_ints=[1])
    zero = op.Constant(value_ints=[0])
    capacity = op.Shape(cache, start=2, end=3)
    chosen = op.Cast(indices, to=7)
    columns = op.Where(op.Less(chosen, op.Constant(value_int=0)), capacity, chosen)
    shape = op.Concat(op.Shape(indices, start=0, end=2), op.Add(capacity, one), axis=0)
    empty = op.Expand(op.Constant(value_float=0.0), shape)
    marks = op.Add(op.Mul(op.Cast(indices, to=1), 0.0), 1.0)
    marked = op.ScatterElements(empty, columns, marks, axis=2)
    selected = op.Greater(op.Slice(marked, zero, capacity, op.Constant(value_ints=[2])), 0.0)
    dots = op.MatMul(query, op.Transpose(cache, perm=[0, 1, 3, 2]))
    scaled = op.Cast(op.Mul(dots, op.CastLike(op.Constant(value_float=scale), query)), to=1)
    masked = op.Where(
        op.Unsqueeze(selected, op.Constant(value_ints=[2])),
        scaled,
        op.Constant(value_float=float("-inf")),
    )
    probabilities = op.CastLike(op.Softmax(masked, axis=-1), query)
    width = op.Reshape(op.Constant(value_int=value_width), one)
    return op.MatMul(probabilities, op.Slice(cache, zero, width, op.Constant(value_ints=[3])))


def body() -> onnx.FunctionProto:
    """The operator as standard ones."""
    return to_function(SparseMla)
