"""Faults of graphs that the backend of a run does not look at, or that few inputs show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from faults import Faulty, fault, insert, maker_of, node_of
from onnx import helper, numpy_helper


def in_body(bundle: Faulty, block: str, name: str, edit: Callable[[Any], None]) -> None:
    """Edit the body of a function in every graph of the block's kind."""

    def edit_model(model: onnx.ModelProto) -> None:
        edit(next(f for f in model.functions if f.name == name))

    bundle.graphs(block, edit_model)


@fault("plain", "layer.1", "IndexerTopK", dtype="bfloat16")
def scores_without_relu_in_the_body(bundle: Faulty) -> None:
    def edit(body: Any) -> None:
        next(n for n in body.node if n.op_type == "Relu").op_type = "Identity"

    in_body(bundle, "layer.1", "IndexerTopK", edit)


@fault("plain", "layer.1", "MoeRouting")
def larger_divisor_in_the_body(bundle: Faulty) -> None:
    """The 1e-20 that keeps a sum of weights from being zero is 1e-6."""

    def edit(body: Any) -> None:
        for node in body.node:
            for attribute in node.attribute:
                if attribute.name != "value":
                    continue
                value = numpy_helper.to_array(attribute.t)
                if value.dtype == np.float32 and value.size == 1 and 0 < value < 1e-15:
                    new = np.full_like(value, 1e-6)
                    attribute.t.CopyFrom(numpy_helper.from_array(new, attribute.t.name))
                    return
        raise AssertionError("no such constant")

    in_body(bundle, "layer.1", "MoeRouting", edit)


@fault("hybrid", "layer.3", "CausalMla")
def softmax_in_half_precision_in_the_body(bundle: Faulty) -> None:
    def edit(body: Any) -> None:
        node = next(n for n in body.node if n.op_type == "Softmax")
        at = list(body.node).index(node)
        name, result = node.input[0], node.output[0]
        node.input[0], node.output[0] = "narrow", "narrow_result"
        body.node.insert(at, helper.make_node("Cast", [name], ["narrow"], to=10))
        wide = helper.make_node("CastLike", ["narrow_result", name], [result])
        body.node.insert(at + 2, wide)

    in_body(bundle, "layer.3", "CausalMla", edit)


@fault("plain", "embedding", "Mul", "Cos", "Sin")
def one_frequency_off(bundle: Faulty) -> None:
    """An initializer of the graph: the last frequency of the angles, by 1 %."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(x for x in model.graph.initializer if x.data_type == 1 and x.dims)
        values = numpy_helper.to_array(tensor).copy()
        values[-1] *= np.float32(1.01)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    bundle.graphs("embedding", edit)


@fault("plain", "layer.1", "Cast", "MoeExperts", "Add", dtype="float32")
def experts_through_half_precision(bundle: Faulty) -> None:
    """A cast to float16 and back that was put between the experts and what adds them up."""

    def edit(model: onnx.ModelProto) -> None:
        experts = node_of(model, "MoeExperts")
        name = experts.output[0]
        reader = next(node for node in model.graph.node if name in node.input)
        to = next(x for x in model.graph.input if x.name == "hidden").type.tensor_type.elem_type
        insert(
            model, reader,
            helper.make_node("Cast", [name], ["narrow"], to=10, name="narrowed"),
            helper.make_node("Cast", ["narrow"], ["wide"], to=to, name="widened"),
        )  # fmt: skip
        reader.input[list(reader.input).index(name)] = "wide"
        assert maker_of(model, name) is not None

    bundle.graphs("layer.1", edit)
