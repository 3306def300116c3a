"""MoE experts with FP8 weights in standard operators: dequantised, then as others."""
# mypy: ignore-errors

from __future__ import annotations

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op

from glm_trt.plugins.common.onnx_scripts import GLM_TRT, then
from glm_trt.plugins.common.onnx_text import E4M3_TABLE
from glm_trt.plugins.moe_experts.onnx_body import MoeExperts


@script(GLM_TRT, default_opset=op)
def Fp8MoeExperts(x, indices, weights, gate_up, gate_up_scale, down, down_scale):
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    block = op.Constant(value_int=128)
    table = op.Constant(value=E4M3_TABLE)
    width, hidden = op.Shape(down, start=2, end=3), op.Shape(down, start=1, end=2)
    inner = op.Div(op.Range(zero, op.Squeeze(width), one), block)
    outer = op.Div(op.Range(zero, op.Squeeze(hidden), one), block)
    both = op.Gather(op.Gather(gate_up_scale, inner, axis=2), outer, axis=3)
    codes = op.Gather(table, op.Cast(gate_up, to=6), axis=0)
    dense_gate_up = op.CastLike(op.Mul(codes, op.Reshape(both, op.Shape(gate_up))), x)
    scales = op.Gather(op.Gather(down_scale, outer, axis=1), inner, axis=2)
    dense = op.Mul(op.Gather(table, op.Cast(down, to=6), axis=0), scales)
    dense_down = op.CastLike(dense, x)
    return dense_gate_up, dense_down


def body() -> onnx.FunctionProto:
    """The operator as standard ones."""
    return then(Fp8MoeExperts, MoeExperts)
