"""The indexer's top-k in standard operators, for any runtime."""
# mypy: ignore-errors

from __future__ import annotations

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op

from glm_trt.plugins.common.onnx_scripts import GLM_TRT, to_function


@script(GLM_TRT, default_opset=op)
def IndexerTopK(query, keys, weights, past_lengths, index_topk: int, scale: float):
    capacity = op.Shape(keys, start=2, end=3)
    length = op.Squeeze(op.Shape(query, start=1, end=2))
    transposed = op.Transpose(op.Cast(keys, to=1), perm=[0, 1, 3, 2])
    dots = op.Mul(op.MatMul(op.Cast(query, to=1), transposed), op.Constant(value_float=scale))
    two = op.Constant(value_ints=[2])
    scores = op.Squeeze(op.MatMul(op.Unsqueeze(weights, two), op.Relu(dots)), two)
    steps = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1))
    positions = op.Add(op.Unsqueeze(past_lengths, op.Constant(value_ints=[1])), steps)
    positions = op.Cast(op.Unsqueeze(positions, two), to=1)
    # Positions as float32: exact below 2^24, and TensorRT's TopK takes no int64.
    columns = op.Cast(
        op.Range(op.Constant(value_int=0), op.Squeeze(capacity), op.Constant(value_int=1)), to=1
    )
    visible = op.LessOrEqual(columns, positions)
    masked = op.Where(visible, scores, op.Constant(value_float=float("-inf")))
    count = op.Min(
        capacity, op.Reshape(op.Constant(value_int=index_topk), op.Constant(value_ints=[1]))
    )
    _, best = op.TopK(masked, count, axis=-1)
    chosen = op.Cast(best, to=1)
    none = op.Cast(capacity, to=1)
    kept = op.Where(op.LessOrEqual(chosen, positions), chosen, none)
    ordered, _ = op.TopK(kept, count, axis=-1, largest=0)
    return op.Cast(op.Where(op.Less(ordered, none), ordered, op.Constant(value_float=-1.0)), to=6)


def body() -> onnx.FunctionProto:
    """The operator as standard ones."""
    return to_function(IndexerTopK)
