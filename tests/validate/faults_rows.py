"""Faults of a batch whose rows have different pasts: one row's number is taken for all of them."""

from __future__ import annotations

import numpy as np
import onnx
from faults import Faulty, constant, fault, insert, maker_of, node_of
from onnx import helper


def of_the_first_row(bundle: Faulty, block: str, op_type: str) -> None:
    """An operator takes the past lengths (or lengths) of row 0 for every row."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, op_type)
        at = next(i for i, x in enumerate(node.input) if x in ("past_lengths", "lengths"))
        name = node.input[at]
        zero = constant(model, "row_0", np.int64([0]))
        insert(
            model, node,
            helper.make_node("Gather", [name, zero], ["of_row_0"], axis=0),
            helper.make_node("Shape", [name], ["rows"]),
            helper.make_node("Expand", ["of_row_0", "rows"], ["of_every_row"]),
        )  # fmt: skip
        node.input[at] = "of_every_row"

    bundle.graphs(block, edit)


@fault("hybrid", "layer.3", "CausalMla")
def full_attention_behind_the_past_of_row_0(bundle: Faulty) -> None:
    of_the_first_row(bundle, "layer.3", "CausalMla")


@fault("plain", "layer.1", "IndexerTopK")
def positions_chosen_behind_the_past_of_row_0(bundle: Faulty) -> None:
    of_the_first_row(bundle, "layer.1", "IndexerTopK")


@fault("hybrid", "layer.3", "TensorScatter")
def cache_written_behind_the_past_of_row_0(bundle: Faulty) -> None:
    of_the_first_row(bundle, "layer.3", "TensorScatter")


@fault("hybrid", "embedding", "Unsqueeze", "Add", "Expand", "Cast", "Mul", "Cos", "Sin")
def positions_counted_from_the_past_of_row_0(bundle: Faulty) -> None:
    of_the_first_row(bundle, "embedding", "Unsqueeze")


@fault("hybrid", "layer.0", "Unsqueeze", "Less", "Where", "Greater", "Sub", "Add")
def states_as_long_as_row_0(bundle: Faulty) -> None:
    of_the_first_row(bundle, "layer.0", "Unsqueeze")


@fault("plain", "layer.1", "Where", "Gemm", dtype="bfloat16")
def two_tokens_behind_a_past_without_attention(bundle: Faulty) -> None:
    """As many as verifying one draft takes, and no other pass."""

    def edit(model: onnx.ModelProto) -> None:
        output = maker_of(model, node_of(model, "Add").input[1])
        name, two = output.output[0], constant(model, "two", np.int64([2]))
        none = constant(model, "none", np.int64([0]))
        output.output[0] = "attended"
        after = next(node for node in model.graph.node if name in node.input)
        insert(
            model, after,
            helper.make_node("Shape", ["hidden"], ["tokens"], start=1, end=2),
            helper.make_node("Equal", ["tokens", two], ["are_two"]),
            helper.make_node("ReduceMax", ["past_lengths"], ["longest"], keepdims=1),
            helper.make_node("Greater", ["longest", none], ["behind"]),
            helper.make_node("And", ["are_two", "behind"], ["without"]),
            helper.make_node("Sub", ["attended", "attended"], ["nothing"]),
            helper.make_node("Where", ["without", "nothing", "attended"], [name]),
        )  # fmt: skip

    bundle.graphs("layer.1", edit)
