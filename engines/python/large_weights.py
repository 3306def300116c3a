"""Large weights in the dtype in which they are stored: mapped, and widened piece by piece.

In float32 the embedding and the head of the full model are 3.8 GB each. Where the file has them
narrower, the graph takes them as they are, and only what it reads of them is converted.
"""

from __future__ import annotations

import math

import onnx
from onnx import helper

from glm_trt.engines.python.values import ELEMENT_TYPES
from glm_trt.model.bindings import NUMPY_DTYPES

LARGE = 1 << 28  # numbers: a gigabyte in float32
SLICE_NUMBERS = 1 << 25  # of one piece of a product


def keep_stored(model: onnx.ModelProto, stored: dict[str, str]) -> onnx.ModelProto:
    """Graph inputs in the dtypes of `stored`, by name, converted where they are read.

    1. `Gather` of rows: the rows are converted.
    2. `Gemm` with transB of the weight's rows: by slices of rows, each converted, one after
       another; with bfloat16 as fast as on float32 weights, which are twice the bytes to read.

    An input with any other use stays as it is: float32.
    """
    uses = {name: [n for n in model.graph.node if name in n.input] for name in stored}
    fitting = {name: of[0] for name, of in uses.items() if len(of) == 1 and _fits(of[0], name)}
    if not fitting:
        return model
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    rewritten.graph.ClearField("node")
    shapes = {}
    for value in rewritten.graph.input:
        if value.name in fitting:
            value.type.tensor_type.elem_type = ELEMENT_TYPES[NUMPY_DTYPES[stored[value.name]]]
            shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    of_node = {id(node): name for name, node in fitting.items()}
    for node in model.graph.node:
        name = of_node.get(id(node))
        if name is None:
            rewritten.graph.node.append(node)
        elif node.op_type == "Gather":
            rewritten.graph.node.extend(_widened_rows(node))
        else:
            rewritten.graph.node.extend(_sliced_product(node, *shapes[name]))
    return rewritten


def _fits(node: onnx.NodeProto, name: str) -> bool:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.domain:
        return False
    if node.op_type == "Gather":
        return node.input[0] == name and attributes.get("axis", 0) == 0
    plain = attributes.keys() <= {"transB", "alpha", "beta", "transA"}
    plain = plain and attributes.get("alpha", 1.0) == 1.0 and not attributes.get("transA", 0)
    return (
        node.op_type == "Gemm" and len(node.input) == 2 and node.input[1] == name and plain
        and attributes.get("transB") == 1
    )  # fmt: skip


def _widened_rows(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    rows = onnx.NodeProto()
    rows.CopyFrom(node)
    rows.output[0] = f"{node.output[0]}_stored"
    return [rows, helper.make_node("Cast", rows.output, node.output, to=onnx.TensorProto.FLOAT)]


def _sliced_product(node: onnx.NodeProto, rows: int, columns: int) -> list[onnx.NodeProto]:
    x, weight = node.input
    step = max(SLICE_NUMBERS // columns, 1)
    nodes, parts = [], []
    for i in range(math.ceil(rows / step)):
        begin, end, part, wide, product = (
            f"{node.output[0]}_{of}_{i}" for of in ("begin", "end", "slice", "wide", "part")
        )
        for bound, row in ((begin, i * step), (end, min((i + 1) * step, rows))):
            nodes.append(helper.make_node("Constant", [], [bound], value_ints=[row]))
        nodes.append(helper.make_node("Slice", [weight, begin, end], [part]))
        nodes.append(helper.make_node("Cast", [part], [wide], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Gemm", [x, wide], [product], transB=1))
        parts.append(product)
    return [*nodes, helper.make_node("Concat", parts, node.output, axis=1)]
