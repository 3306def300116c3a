"""MoE experts with NVFP4 weights in standard operators: dequantised, then as others."""
# mypy: ignore-errors

from __future__ import annotations

import onnx
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op

from glm_trt.plugins.common.onnx_scripts import GLM_TRT, then
from glm_trt.plugins.common.onnx_text import E2M1_TABLE, E4M3_TABLE
from glm_trt.plugins.moe_experts.onnx_body import MoeExperts


@script(GLM_TRT, default_opset=op)
def Nvfp4MoeExperts(
    x, indices, weights, gate_up, gate_up_scale, gate_up_global, down, down_scale, down_global
):
    e2m1, e4m3 = op.Constant(value=E2M1_TABLE), op.Constant(value=E4M3_TABLE)
    last, group = op.Constant(value_ints=[-1]), op.Constant(value_ints=[16])
    pairs = op.Gather(e2m1, op.Cast(gate_up, to=6), axis=0)
    values_of = op.Gather(e4m3, op.Cast(gate_up_scale, to=6), axis=0)
    grouped = op.Reshape(pairs, op.Concat(op.Shape(gate_up_scale), group, axis=0))
    scaled = op.Mul(grouped, op.Unsqueeze(values_of, last))
    experts, hidden = op.Shape(down, start=0, end=1), op.Shape(down, start=1, end=2)
    # Gate and up apart, for the global scale of each.
    halves = op.Reshape(scaled, op.Concat(experts, op.Constant(value_ints=[2, -1]), axis=0))
    halves = op.Mul(halves, op.Unsqueeze(gate_up_global, last))
    shape = op.Concat(op.Shape(gate_up, start=0, end=2), hidden, axis=0)
    dense_gate_up = op.CastLike(op.Reshape(halves, shape), x)
    pairs_down = op.Gather(e2m1, op.Cast(down, to=6), axis=0)
    values_down = op.Gather(e4m3, op.Cast(down_scale, to=6), axis=0)
    grouped_down = op.Reshape(pairs_down, op.Concat(op.Shape(down_scale), group, axis=0))
    scaled_down = op.Mul(grouped_down, op.Unsqueeze(values_down, last))
    flat = op.Reshape(scaled_down, op.Concat(op.Shape(down, start=0, end=2), last, axis=0))
    of_expert = op.Unsqueeze(down_global, op.Constant(value_ints=[1, 2]))
    dense_down = op.CastLike(op.Mul(flat, of_expert), x)
    return dense_gate_up, dense_down


def body() -> onnx.FunctionProto:
    """The operator as standard ones."""
    return then(Nvfp4MoeExperts, MoeExperts)
