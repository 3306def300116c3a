"""Function bodies in ONNX's own text, and the tables of the formats of narrow weights.

What a runtime needs of a body is written so: it may have no PyTorch and no onnxscript.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

from glm_trt.model.checkpoint.stored_weights import E2M1_OF_BYTE, E4M3_OF_BYTE

OPSET = 27  # none of the operators used in bodies changed between 23 and 27 for our dtypes
# By a byte as int8: a negative index counts from the end, which is the byte's place as unsigned.
E4M3_TABLE = numpy_helper.from_array(E4M3_OF_BYTE)  # [256]
E2M1_TABLE = numpy_helper.from_array(np.ascontiguousarray(E2M1_OF_BYTE))  # [256, 2]
_TABLES = {"e4m3_table": E4M3_TABLE, "e2m1_table": E2M1_TABLE}


def parsed(text: str) -> onnx.FunctionProto:
    """The body that a text says; tables that it reads become constants at its beginning."""
    header = f'<domain: "glm_trt", opset_import: ["": {OPSET}]>'
    body = onnx.parser.parse_function(header + text)
    read = {name for node in body.node for name in node.input}
    tables = [
        helper.make_node("Constant", [], [name], value=tensor)
        for name, tensor in _TABLES.items()
        if name in read
    ]
    nodes = [*tables, *body.node]
    body.ClearField("node")
    body.node.extend(nodes)
    for i, node in enumerate(body.node):
        node.name = f"n{i}"
    return body
