"""The operators that ONNX defines: contract and reference against onnx's schema and onnxruntime."""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import defs, helper

from glm_trt.plugins.common.contract import STANDARD, Choice
from glm_trt.plugins.folders import CONTRACTS, part_of

NAMES = [name for name, contract in CONTRACTS.items() if contract.domain == STANDARD]
OPSET = 27


def cases() -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}-{case.name}")
        for name in NAMES
        for case in part_of(name, "cases").CASES
        if not case.name.startswith("no token")  # onnxruntime runs neither on an empty sequence
    ]


def onnx_model(name: str, inputs: list[torch.Tensor | None], attributes: Any) -> onnx.ModelProto:
    """One node of the standard operator, float32; an absent input has no name."""
    contract = CONTRACTS[name]
    names = [
        "" if tensor is None else port.name
        for port, tensor in zip(contract.inputs, inputs, strict=True)
    ]
    outputs = [port.name for port in contract.outputs]
    given = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, t.shape)
        for n, t in zip(names, inputs, strict=True)
        if t is not None
    ]
    while not names[-1]:
        names.pop()
    made = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs]
    node = helper.make_node(contract.name, names, outputs, **attributes)
    return helper.make_model(
        helper.make_graph([node], "one_operator", given, made),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=12,
    )


def run_onnxruntime(
    name: str, inputs: list[torch.Tensor | None], attributes: Any
) -> list[torch.Tensor]:
    """The standard operator in float32, by onnxruntime; inputs that are None are absent."""
    contract = CONTRACTS[name]
    model = onnx_model(name, inputs, attributes)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {
        port.name: tensor.float().numpy()
        for port, tensor in zip(contract.inputs, inputs, strict=True)
        if tensor is not None
    }
    return [torch.from_numpy(array) for array in session.run(None, feed)]


@pytest.mark.parametrize("name", NAMES)
def test_contract_is_the_standard_schema(name: str) -> None:
    contract = CONTRACTS[name]
    schema = defs.get_schema(contract.name, OPSET)
    optional = defs.OpSchema.FormalParameterOption.Optional
    assert [(p.name, p.option == optional) for p in schema.inputs] == [
        (port.name, port.optional) for port in contract.inputs
    ]
    assert [p.type_str for p in schema.inputs] == [port.dtype for port in contract.inputs]
    assert [p.name for p in schema.outputs] == [port.name for port in contract.outputs]
    # The chunk size is a hint that changes no result.
    assert set(contract.attributes) == set(schema.attributes) - {"chunk_size"}
    for attribute, kind in contract.attributes.items():
        for value in kind.values if isinstance(kind, Choice) else ():
            assert f"'{value}'" in schema.attributes[attribute].description


@pytest.mark.parametrize(("name", "case"), cases())
def test_reference_is_the_standard_operator(name: str, case: Any) -> None:
    inputs = case.make(torch.Generator().manual_seed(4), torch.float32)
    expected = run_onnxruntime(name, inputs, case.attributes)
    found = part_of(name, "reference").reference(*inputs, **case.attributes)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        difference = (ours.double() - theirs.double()).norm()
        assert difference <= CONTRACTS[name].tolerance["float32"] * theirs.double().norm()
