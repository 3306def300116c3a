"""Each function body, run by plain onnxruntime, against the operator's reference."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest
import torch
from onnx import helper
from test_operators import CASES, as_tuple

from glm_trt.plugins.bodies import function_bodies
from glm_trt.plugins.common.onnx_text import OPSET
from glm_trt.plugins.folders import CONTRACTS

BODIES = function_bodies()
ONNX_TYPES = {torch.float32: 1, torch.int8: 3, torch.int32: 6, torch.int64: 7}


def run(name: str, inputs: Any, attributes: dict[str, Any]) -> list[torch.Tensor]:
    contract = CONTRACTS[name]
    names = [port.name for port in contract.inputs]
    outputs = [port.name + "_out" for port in contract.outputs]
    graph = helper.make_graph(
        [helper.make_node(contract.name, names, outputs, domain="glm_trt", **attributes)],
        "one_operator",
        [
            helper.make_tensor_value_info(n, ONNX_TYPES[t.dtype], [None] * t.ndim)
            for n, t in zip(names, inputs, strict=True)
        ],
        [
            helper.make_tensor_value_info(n, 6 if p.dtype == "int32" else 1, [None] * len(p.axes))
            for n, p in zip(outputs, contract.outputs, strict=True)
        ],
    )
    model = helper.make_model(
        graph,
        functions=[BODIES[contract.name]],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("glm_trt", 1)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feed = {n: t.numpy() for n, t in zip(names, inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]


@pytest.mark.parametrize(("name", "make"), CASES)
def test_body_equals_reference(name: str, make: Any) -> None:
    torch.manual_seed(0)
    inputs, attributes = make()
    if "norm_topk_prob" in attributes:
        attributes["norm_topk_prob"] = int(attributes["norm_topk_prob"])
    expected = as_tuple(getattr(torch.ops.glm_trt, name)(*inputs, **attributes))
    for ours, theirs in zip(run(name, inputs, attributes), expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if ours.dtype == torch.int32:
            assert torch.equal(ours, theirs)
        elif ours.numel():
            error = (ours - theirs).norm() / theirs.norm()
            assert error < CONTRACTS[name].tolerance["float32"]
