"""Giving the absent optional inputs of LinearAttention and CausalConvWithState as zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Namer = Callable[[str], str]


def fill_absent_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no optional input of the two operators is skipped over.

    TensorRT's importer gives a plugin no tensor for an input with an empty name, and fails, where
    a later input is given. Zeros mean the same, computed from the shapes of other inputs:

    1. `LinearAttention`: past_state [B, H, dk, dv] and decay [B, S, H], of the query's dtype; the
       rule `delta`, which may have no decay, becomes `gated_delta`, of which it is the case e⁰ = 1;
    2. `CausalConvWithState`: bias [C], of the input's dtype.

    Inputs that are absent at the end stay so. Nodes of the main graph alone are filled.
    """
    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*model.graph.input, *model.graph.initializer)}

    def fresh(stem: str) -> str:
        number = next(i for i in range(len(taken) + 1) if f"{stem}_{i}" not in taken)
        taken.add(f"{stem}_{number}")
        return f"{stem}_{number}"

    nodes = []
    for node in filled.graph.node:
        if node.domain in ("", "ai.onnx") and node.op_type in _ZEROS:
            for i, name in enumerate(node.input):
                if not name and any(node.input[i + 1 :]):
                    made = list(_ZEROS[node.op_type](node, i, fresh))
                    nodes += made
                    node.input[i] = made[-1].output[0]
        nodes.append(node)
    del filled.graph.node[:]
    filled.graph.node.extend(nodes)
    return filled


def _linear_attention_zeros(node: onnx.NodeProto, index: int, fresh: Namer) -> Iterator[
    onnx.NodeProto
]:  # fmt: skip
    query, key, value = node.input[:3]
    heads = next(a.i for a in node.attribute if a.name == "kv_num_heads")
    parts: list[str] = []

    def add(op: str, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
        made = helper.make_node(op, inputs, [fresh(f"zeros_{op}")], **attributes)
        parts.append(made.output[0])
        return made

    constant = _constant([heads], fresh)
    yield constant
    if index == 3:  # past_state
        yield add("Shape", [query], start=0, end=1)
        sizes = [parts[-1], constant.output[0]]
        for packed in (key, value):
            yield add("Shape", [packed], start=2, end=3)
            yield add("Div", [parts[-1], constant.output[0]])
            sizes.append(parts[-1])
    else:  # decay
        for attribute in node.attribute:
            if attribute.name == "update_rule" and attribute.s == b"delta":
                attribute.s = b"gated_delta"
        yield add("Shape", [key], start=0, end=2)
        sizes = [parts[-1], constant.output[0]]
    yield add("Concat", sizes, axis=0)
    yield from _zeros(parts[-1], query, fresh)


def _convolution_zeros(node: onnx.NodeProto, _: int, fresh: Namer) -> Iterator[onnx.NodeProto]:
    shape = helper.make_node("Shape", [node.input[1]], [fresh("zeros_Shape")], start=0, end=1)
    yield shape
    yield from _zeros(shape.output[0], node.input[0], fresh)


def _constant(values: list[int], fresh: Namer) -> onnx.NodeProto:
    tensor = numpy_helper.from_array(np.array(values, np.int64))
    return helper.make_node("Constant", [], [fresh("zeros_sizes")], value=tensor)


def _zeros(shape: str, like: str, fresh: Namer) -> Iterator[onnx.NodeProto]:
    zeros = helper.make_node("ConstantOfShape", [shape], [fresh("zeros_float")])
    yield zeros
    yield helper.make_node("CastLike", [zeros.output[0], like], [fresh("zeros")])


_ZEROS: dict[str, Callable[[onnx.NodeProto, int, Namer], Iterator[onnx.NodeProto]]] = {
    "LinearAttention": _linear_attention_zeros,
    "CausalConvWithState": _convolution_zeros,
}
