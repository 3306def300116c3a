"""Constants as tensors, on a graph with a function and a branch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from glm_trt.export.passes.nodes import every_node
from glm_trt.export.passes.type_constants import type_constants

TEXT = """
<ir_version: 10, opset_import: ["": 24, "f": 1]>
g (bool c) => (float[n] y) {
    a = Constant <CONSTANT> ()
    y = If (c) <
        then_branch = yes () => (float[n] b) { b = Constant <CONSTANT> () },
        else_branch = no () => (float[n] d) { d = f.F <scale = 2.5> () }
    >
}
<domain: "f", opset_import: ["": 24]>
F <scale> () => (z) {
    e = Constant <CONSTANT> ()
    h = Constant <value_float: float = @scale> ()
    z = Add (e, h)
}
"""


@pytest.mark.parametrize(
    ("constant", "expected"),
    [("value_float = -1.5", np.float32(-1.5)), ("value_int = 7", np.int64(7)),
     ("value_floats = [0.5, 2.0]", np.array([0.5, 2], np.float32)),
     ("value_ints = [3]", np.array([3], np.int64))],
)  # fmt: skip
def test_numbers_become_tensors(constant: str, expected: np.ndarray) -> None:
    model = onnx.parser.parse_model(TEXT.replace("CONSTANT", constant))
    type_constants(model)
    found = {node.output[0]: node.attribute[0] for node in every_node(model)
             if node.op_type == "Constant"}  # fmt: skip
    assert list(found) == ["a", "b", "e", "h"]
    assert found.pop("h").ref_attr_name == "scale"
    for attribute in found.values():
        assert attribute.name == "value"
        array = numpy_helper.to_array(attribute.t)
        assert array.dtype == expected.dtype and array.shape == expected.shape
        assert (array == expected).all()


def test_tensors_stay() -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float16))
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    other = helper.make_node("Constant", [], ["y"], value_float=1.0, domain="another")
    model = helper.make_model(helper.make_graph([node, other], "g", [], []))
    before = model.SerializeToString()
    type_constants(model)
    assert model.SerializeToString() == before
