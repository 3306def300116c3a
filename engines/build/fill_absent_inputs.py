"""Giving the absent optional inputs of operators of ONNX that plugins run as zeros."""

from __future__ import annotations

import onnx

from glm_trt.plugins.common.contract import STANDARD
from glm_trt.plugins.folders import CONTRACTS, has_part, part_of

_PARTS = {
    contract.name: part_of(name, "absent_inputs")
    for name, contract in CONTRACTS.items()
    if contract.domain == STANDARD and has_part(name, "absent_inputs")
}


def fill_absent_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no optional input of such an operator is skipped over.

    TensorRT's importer gives a plugin no tensor for an input with an empty name, and fails, where
    a later input is given. Zeros mean the same, computed from the shapes of other inputs as the
    operators' folders say (`absent_inputs.py`).

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
        if node.domain in ("", "ai.onnx") and node.op_type in _PARTS:
            for i, name in enumerate(node.input):
                if not name and any(node.input[i + 1 :]):
                    made = list(_PARTS[node.op_type].zeros(node, i, fresh))
                    nodes += made
                    node.input[i] = made[-1].output[0]
        nodes.append(node)
    del filled.graph.node[:]
    filled.graph.node.extend(nodes)
    return filled
