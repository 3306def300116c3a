"""Faults of the MTP layer and its head, which have parts of their own."""

from __future__ import annotations

import json

import onnx
from faults import Faulty, constant, fault, insert, node_of
from faults_rows import of_the_first_row
from onnx import helper

LAYER, HEAD = "mtp.0", "mtp.0.head"


@fault("mtp", LAYER, "Concat", "Gemm", slow=True)
def token_and_hidden_state_exchanged(bundle: Faulty) -> None:
    """The projection takes the embedding of the following token first."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, "Concat")
        first, second = node.input
        node.input[:] = [second, first]

    bundle.graphs(LAYER, edit)


@fault("mtp", LAYER, "RMSNormalization", slow=True)
def prediction_without_the_decoders_last_norm(bundle: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        last = next(n for n in model.graph.node if "norm.weight" in n.input)
        reader = next(n for n in model.graph.node if last.output[0] in n.input)
        reader.input[list(reader.input).index(last.output[0])] = last.input[0]

    bundle.graphs(LAYER, edit)


@fault("mtp", LAYER, "RMSNormalization", slow=True)
def norms_of_prediction_exchanged(bundle: Faulty) -> None:
    exchange(bundle, LAYER, "enorm.weight", LAYER, "hnorm.weight")


@fault("mtp", HEAD, "RMSNormalization", slow=True)
def prediction_behind_the_decoders_last_norm(bundle: Faulty) -> None:
    exchange(bundle, HEAD, "norm.weight", LAYER, "norm.weight", both=False)


def exchange(
    bundle: Faulty, block: str, name: str, other: str, of_other: str, *, both: bool = True
) -> None:
    """A weight is bound to the tensors of another, and that one to those of the first if `both`."""
    path = bundle.directory / bundle.manifest["bindings"]
    bindings = json.loads(path.read_text())
    one = next(x for x in bindings[block] if x["name"] == name)
    two = next(x for x in bindings[other] if x["name"] == of_other)
    tensors = one["tensors"], two["tensors"]
    one["tensors"] = tensors[1]
    if both:
        two["tensors"] = tensors[0]
    path.write_text(json.dumps(bindings))


@fault("mtp", LAYER, "IndexerTopK", slow=True)
def prediction_chosen_behind_the_past_of_row_0(bundle: Faulty) -> None:
    of_the_first_row(bundle, LAYER, "IndexerTopK")


@fault("mtp", LAYER, "TensorScatter", slow=True)
def prediction_cached_behind_the_past_of_row_0(bundle: Faulty) -> None:
    of_the_first_row(bundle, LAYER, "TensorScatter")


@fault("mtp", LAYER, "MoeRouting", "Cast", dtype="float32", slow=True)
def router_of_prediction_in_float16(bundle: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, "MoeRouting")
        insert(
            model, node,
            helper.make_node("Cast", [node.input[0]], ["half"], to=onnx.TensorProto.FLOAT16),
            helper.make_node("Cast", ["half"], ["whole"], to=onnx.TensorProto.FLOAT),
        )  # fmt: skip
        node.input[0] = "whole"

    bundle.graphs(LAYER, edit)


@fault("mtp", LAYER, "Gemm", "Mul", dtype="bfloat16", slow=True)
def projection_of_prediction_with_a_gain(bundle: Faulty) -> None:
    """Of 0.8 %, one step of bfloat16, on what token and hidden state give together."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if "eh_proj.weight" in n.input)
        at, name = list(model.graph.node).index(node), node.output[0]
        dtype = next(x for x in model.graph.input if x.name == "hidden").type.tensor_type.elem_type
        gain = constant(model, "gain", helper.tensor_dtype_to_np_dtype(dtype).type(1.0078125))
        node.output[0] = "without_gain"
        product = helper.make_node("Mul", ["without_gain", gain], [name])
        insert(model, model.graph.node[at + 1], product)

    bundle.graphs(LAYER, edit)
