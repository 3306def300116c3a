"""Faults that no text of usual length and size shows: a position, a large value or a state that
goes through a type which does not hold it.

Their bundles have room for more positions than those of other faults.
"""

from __future__ import annotations

import onnx
from faults import Faulty, fault, insert, node_of
from onnx import helper

POSITIONS = 8192
FLOAT16, BFLOAT16 = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
INT64 = onnx.TensorProto.INT64


def through(model: onnx.ModelProto, node: onnx.NodeProto, at: int, narrow: int) -> None:
    """Input `at` of a node goes through `narrow` and back to its own dtype: an input of the graph
    has one, integers are positions, and what else there is has that of the hidden state.
    """
    name = node.input[at]
    dtypes = {x.name: x.type.tensor_type.elem_type for x in model.graph.input}
    dtype = dtypes[name] if name in dtypes else dtypes.get("hidden", INT64)
    # bfloat16 has no way from integers in one step everywhere.
    insert(
        model, node,
        helper.make_node("Cast", [name], ["as_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Cast", ["as_float"], ["as_narrow"], to=narrow),
        helper.make_node("Cast", ["as_narrow"], ["as_wide"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Cast", ["as_wide"], ["as_before"], to=dtype),
    )  # fmt: skip
    node.input[at] = "as_before"


def with_room(bundle: Faulty) -> None:
    bundle.manifest["max_seq_len"] = POSITIONS
    for pools in bundle.manifest["states"].values():
        for pool in pools:
            if pool["position_axis"] is not None:
                pool["shape"][pool["position_axis"]] = POSITIONS


def positions_of_angles(bundle: Faulty, narrow: int) -> None:
    with_room(bundle)

    def edit(model: onnx.ModelProto) -> None:
        add = node_of(model, "Add")
        node = next(n for n in model.graph.node if add.output[0] in n.input)
        through(model, node, 0, narrow)

    bundle.graphs("embedding", edit)


def past_of(bundle: Faulty, block: str, op_type: str, narrow: int) -> None:
    with_room(bundle)

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, op_type)
        through(model, node, list(node.input).index("past_lengths"), narrow)

    bundle.graphs(block, edit)


def input_of(bundle: Faulty, block: str, op_type: str, at: int, narrow: int) -> None:
    bundle.graphs(block, lambda model: through(model, node_of(model, op_type), at, narrow))


@fault("plain", "embedding", "Cast", "Mul", "Cos", "Sin", dtype="float32")
def angles_of_positions_in_float16(bundle: Faulty) -> None:
    positions_of_angles(bundle, FLOAT16)


@fault("hybrid", "embedding", "Cast", "Mul", "Cos", "Sin", dtype="bfloat16", slow=True)
def angles_of_positions_in_bfloat16(bundle: Faulty) -> None:
    positions_of_angles(bundle, BFLOAT16)


@fault("hybrid", "layer.3", "CausalMla", dtype="bfloat16", slow=True)
def full_attention_sees_up_to_a_position_in_float16(bundle: Faulty) -> None:
    past_of(bundle, "layer.3", "CausalMla", FLOAT16)


@fault("plain", "layer.1", "IndexerTopK", dtype="bfloat16", slow=True)
def positions_chosen_up_to_one_in_bfloat16(bundle: Faulty) -> None:
    past_of(bundle, "layer.1", "IndexerTopK", BFLOAT16)


@fault("plain", "layer.1", "TensorScatter", dtype="bfloat16", slow=True)
def cache_written_at_a_position_in_float16(bundle: Faulty) -> None:
    past_of(bundle, "layer.1", "TensorScatter", FLOAT16)


@fault("hybrid", "layer.3", "Gemm", dtype="bfloat16", slow=True)
def attention_output_in_float16(bundle: Faulty) -> None:
    """Beyond what float16 holds with large latents alone."""

    def edit(model: onnx.ModelProto) -> None:
        output = node_of(model, "Add")
        gemm = next(n for n in model.graph.node if n.output[0] == output.input[1])
        through(model, gemm, 0, FLOAT16)

    bundle.graphs("layer.3", edit)


@fault("plain", "layer.1", "Add", "RMSNormalization", dtype="bfloat16", slow=True)
def residual_in_float16(bundle: Faulty) -> None:
    input_of(bundle, "layer.1", "Add", 0, FLOAT16)


@fault("plain", "head", "RMSNormalization", "Reshape", dtype="bfloat16", slow=True)
def last_hidden_state_in_float16(bundle: Faulty) -> None:
    input_of(bundle, "head", "Reshape", 0, FLOAT16)


@fault("hybrid", "layer.0", "LinearAttention", dtype="bfloat16", slow=True)
def values_of_linear_attention_in_float16(bundle: Faulty) -> None:
    input_of(bundle, "layer.0", "LinearAttention", 2, FLOAT16)


@fault("hybrid", "layer.0", "LinearAttention", dtype="bfloat16")
def recurrent_state_stored_in_bfloat16(bundle: Faulty) -> None:
    input_of(bundle, "layer.0", "LinearAttention", 3, BFLOAT16)
