"""Constants as tensors, whose dtype no tool has to guess."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from glm_trt.export.passes.nodes import every_node

_DTYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def type_constants(model: onnx.ModelProto) -> None:
    """Give each `Constant` its number as a tensor, in the graph and in function bodies.

    1. `value_float` and `value_floats` → `value`, float32: Polygraphy's folding takes them for
       float64, and onnxruntime refuses the graph that it makes.
    2. `value_int` and `value_ints` → `value`, int64.
    3. One that takes an attribute of its function stays: it has no number yet.
    """
    for node in every_node(model):
        if node.op_type != "Constant" or node.domain:
            continue
        (attribute,) = node.attribute
        if attribute.name in _DTYPES and not attribute.ref_attr_name:
            value = np.array(helper.get_attribute_value(attribute), _DTYPES[attribute.name])
            tensor = numpy_helper.from_array(value)
            attribute.CopyFrom(helper.make_attribute("value", tensor))
