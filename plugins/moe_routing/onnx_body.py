"""MoE routing in standard operators, for any runtime."""
# mypy: ignore-errors

from __future__ import annotations

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op

from glm_trt.plugins.common.onnx_scripts import GLM_TRT, to_function


@script(GLM_TRT, default_opset=op)
def MoeRouting(
    logits, correction_bias, top_k: int, n_group: int, topk_group: int, norm_topk_prob: int,
    routed_scaling_factor: float,
):  # fmt: skip
    one = op.Constant(value_ints=[1])
    scores = op.Sigmoid(logits)
    choice = op.Add(scores, correction_bias)
    groups = op.Reshape(op.Constant(value_int=n_group), one)
    # The group's size is computed, not left to -1, which no runtime can infer for zero tokens.
    size = op.Div(op.Shape(logits, start=1, end=2), groups)
    tokens = op.Shape(logits, start=0, end=1)
    grouped = op.Reshape(choice, op.Concat(tokens, groups, size, axis=0), allowzero=1)
    best_two, _ = op.TopK(grouped, op.Constant(value_ints=[2]), axis=-1)
    group_scores = op.ReduceSum(best_two, op.Constant(value_ints=[-1]), keepdims=0)
    kept_count = op.Reshape(op.Constant(value_int=topk_group), one)
    _, kept = op.TopK(group_scores, kept_count, axis=-1)
    zeros = op.Mul(op.Cast(op.Less(group_scores, group_scores), to=1), 1.0)
    ones = op.Add(op.Cast(kept, to=1), op.Neg(op.Cast(kept, to=1)))
    mask = op.ScatterElements(zeros, kept, op.Add(ones, 1.0), axis=1)
    masked = op.Where(
        op.Greater(op.Unsqueeze(mask, op.Constant(value_ints=[-1])), 0.0),
        grouped,
        op.Constant(value_float=float("-inf")),
    )
    count = op.Reshape(op.Constant(value_int=top_k), one)
    _, chosen = op.TopK(op.Reshape(masked, op.Shape(choice), allowzero=1), count, axis=-1)
    picked = op.GatherElements(scores, chosen, axis=1)
    total = op.Add(op.ReduceSum(picked, op.Constant(value_ints=[-1]), keepdims=1), 1e-20)
    normalise = op.Equal(op.Constant(value_int=norm_topk_prob), 1)
    weights = op.Mul(
        op.Where(normalise, op.Div(picked, total), picked),
        op.Constant(value_float=routed_scaling_factor),
    )
    return op.Cast(chosen, to=6), weights


def body() -> onnx.FunctionProto:
    """The operator as standard ones."""
    return to_function(MoeRouting)
