"""Graph rewrites of the onnxruntime backend: faster forms for its CPU kernels.

What an operator becomes there is in its folder (`rewrite.py`). Every node is judged on the graph as
it was, so that the order of operators means nothing.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx.parser

from glm_trt.plugins.common.rewriting import CPU_DOMAIN, Graph, Rewritten
from glm_trt.plugins.folders import CONTRACTS, contract_of, has_part, part_of

REWRITES = {name: part_of(name, "rewrite") for name in CONTRACTS if has_part(name, "rewrite")}
# What an input's name may end in → what makes its array of a binding, its source and the parts.
PREPARED = {
    suffix: make
    for module in REWRITES.values()
    for suffix, make in getattr(module, "PREPARED", {}).items()
}


def rewrite(
    model: onnx.ModelProto, parts: int, operators: Collection[str] = REWRITES.keys()
) -> onnx.ModelProto:
    """A copy with nodes rewritten, or the very model where no case applies.

    Parameters
    ----------
    parts : into how many an expert may be cut.
    operators : whose nodes, by folder.
    """
    graph = Graph(model)
    found: dict[int, Rewritten] = {}
    for i, node in enumerate(model.graph.node):
        contract = contract_of(node)
        if contract is not None and contract.torch_name in operators:
            made = REWRITES[contract.torch_name].rewrite(node, graph, parts)
            found |= {i: made} if made is not None else {}
    if not found:
        return model
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for domain in {CPU_DOMAIN, "com.microsoft"} - set(versions):
        rewritten.opset_import.add(domain=domain, version=1)
    opsets = f'"": {versions[""]}, "com.microsoft": 1'
    header = f'<domain: "{CPU_DOMAIN}", opset_import: [{opsets}]>'
    for i, made in found.items():
        node = rewritten.graph.node[i]
        name = f"{node.op_type}_{i}"
        function = onnx.parser.parse_function(f"{header} {name} {made.function}")
        rewritten.functions.append(function)
        node.domain, node.op_type = CPU_DOMAIN, name
        del node.attribute[:]
        for place, (suffix, shape) in made.prepared.items():
            _rename_input(rewritten.graph, node, place, suffix, shape)
    return rewritten


def _rename_input(
    graph: onnx.GraphProto, node: onnx.NodeProto, place: int, suffix: str, shape: tuple[int, ...]
) -> None:
    value = next(value for value in graph.input if value.name == node.input[place])
    node.input[place] = value.name + suffix
    value.CopyFrom(
        onnx.helper.make_tensor_value_info(value.name + suffix, onnx.TensorProto.FLOAT, shape)
    )
