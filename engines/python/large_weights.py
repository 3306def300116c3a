"""Large weights in the dtype in which they are stored: mapped, and widened piece by piece.

In float32 the embedding and the head of the full model are 3.8 GB each. Where the file has them
narrower, the graph takes them as they are, and only what it reads of them is converted.
"""

from __future__ import annotations

import math

import onnx
from onnx import helper

from glm_trt.engines.python.values import ELEMENT_TYPES
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES
from glm_trt.plugins.common.contract import NarrowLinear
from glm_trt.plugins.folders import contract_of

LARGE = 1 << 28  # numbers: a gigabyte in float32
SLICE_NUMBERS = 1 << 22  # of one piece of a product
_ROWS = 128  # of the weight: slices begin at multiples of them


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


def slice_narrow_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Linear layers of large narrow weights → one for some rows after another.

    What the function bodies dequantise is then never the whole: 1.2 GB for the largest of GLM-5.1.
    Rewritten where the weight is a graph input of static shape above `SLICE_NUMBERS`.
    """
    inputs = {value.name: value for value in model.graph.input}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        shape = _shape(inputs[node.input[1]]) if _is_narrow(node, inputs) else ()
        large = bool(shape) and all(shape) and math.prod(shape) > SLICE_NUMBERS
        nodes += _sliced_narrow_product(node, *shape) if large else [node]
    if len(nodes) == len(model.graph.node):
        return model
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    rewritten.graph.ClearField("node")
    rewritten.graph.node.extend(nodes)
    return rewritten


def _is_narrow(node: onnx.NodeProto, inputs: dict[str, onnx.ValueInfoProto]) -> bool:
    return _rows_of_scale(node) > 0 and node.input[1] in inputs


def _rows_of_scale(node: onnx.NodeProto) -> int:
    """Of a linear layer with a narrow weight; 0 for any other node."""
    contract = contract_of(node)
    form = contract.form if contract else None
    return form.rows_of_scale if isinstance(form, NarrowLinear) else 0


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


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
    slices = _Slices(node, rows, max(SLICE_NUMBERS // columns, 1))
    for i, of in enumerate(slices.rows):
        wide, product = slices.name("wide", i), slices.name("part", i)
        part = slices.cut(weight, i, of.start, of.stop)
        slices.nodes.append(helper.make_node("Cast", [part], [wide], to=onnx.TensorProto.FLOAT))
        slices.nodes.append(helper.make_node("Gemm", [x, wide], [product], transB=1))
    return slices.joined()


def _sliced_narrow_product(node: onnx.NodeProto, rows: int, columns: int) -> list[onnx.NodeProto]:
    x, weight, scale, *rest = node.input
    per_scale = _rows_of_scale(node)
    block = math.lcm(_ROWS, per_scale)
    slices = _Slices(node, rows, block * max(SLICE_NUMBERS // (block * columns), 1))
    for i, of in enumerate(slices.rows):
        part = slices.cut(weight, i, of.start, of.stop)
        scales = slices.cut(scale, i, of.start // per_scale, -(-of.stop // per_scale))
        product = onnx.NodeProto()
        product.CopyFrom(node)
        product.name = slices.name("node", i)
        product.input[:] = [x, part, scales, *rest]
        product.output[:] = [slices.name("part", i)]
        slices.nodes.append(product)
    return slices.joined()


class _Slices:
    """The nodes of a product that is made some rows of the weight after others."""

    def __init__(self, node: onnx.NodeProto, rows: int, step: int) -> None:
        self.output, self.nodes = node.output[0], list[onnx.NodeProto]()
        self.rows = [range(i, min(i + step, rows)) for i in range(0, rows, step)]

    def name(self, of: str, i: int) -> str:
        """A name that no other value of the graph has."""
        return f"{self.output}_{of}_{i}"

    def cut(self, tensor: str, i: int, start: int, stop: int) -> str:
        """Rows of a tensor."""
        names = [self.name(f"{tensor}_{of}", i) for of in ("start", "stop", "rows")]
        for bound, row in zip(names[:2], (start, stop), strict=True):
            self.nodes.append(helper.make_node("Constant", [], [bound], value_ints=[row]))
        self.nodes.append(helper.make_node("Slice", [tensor, *names[:2]], [names[2]]))
        return names[2]

    def joined(self) -> list[onnx.NodeProto]:
        """All nodes, with that which joins the parts."""
        parts = [self.name("part", i) for i in range(len(self.rows))]
        return [*self.nodes, helper.make_node("Concat", parts, [self.output], axis=1)]
