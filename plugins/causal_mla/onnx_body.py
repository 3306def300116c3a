"""Causal MLA in standard operators: dense attention under a mask."""
# mypy: ignore-errors

from __future__ import annotations

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op

from glm_trt.plugins.common.onnx_scripts import GLM_TRT, to_function


@script(GLM_TRT, default_opset=op)
def CausalMla(query, cache, past_lengths, scale: float, value_width: int):
    one = op.Constant(value_ints=[1])
    zero = op.Constant(value_ints=[0])
    three = op.Constant(value_ints=[3])
    length = op.Squeeze(op.Shape(query, start=1, end=2))
    capacity = op.Squeeze(op.Shape(cache, start=2, end=3))
    steps = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1))
    columns = op.Range(op.Constant(value_int=0), capacity, op.Constant(value_int=1))
    past = op.Unsqueeze(past_lengths, one)
    positions = op.Unsqueeze(op.Add(past, steps), op.Constant(value_ints=[2, 3]))
    dots = op.MatMul(query, op.Transpose(cache, perm=[0, 1, 3, 2]))
    scaled = op.Cast(op.Mul(dots, op.CastLike(op.Constant(value_float=scale), query)), to=1)
    masked = op.Where(
        op.LessOrEqual(columns, positions), scaled, op.Constant(value_float=float("-inf"))
    )
    probabilities = op.CastLike(op.Softmax(masked, axis=-1), query)
    width = op.Reshape(op.Constant(value_int=value_width), one)
    values = op.Slice(cache, zero, width, three)
    # Where, not the probability 0 alone: behind the sequence may be NaN.
    written = op.Less(columns, op.Add(past, length))
    written = op.Unsqueeze(written, op.Constant(value_ints=[1, 3]))
    none = op.CastLike(op.Constant(value_float=0.0), cache)
    return op.MatMul(probabilities, op.Where(written, values, none))


def body() -> onnx.FunctionProto:
    """The operator as standard ones."""
    return to_function(CausalMla)
