"""A graph cut at its plugins: each is a part, and so are the standard operators between them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

STANDARD = ("", "ai.onnx")
# Operators of ai.onnx that TensorRT's importer gives to plugins of their names.
STANDARD_PLUGINS = ("LinearAttention", "CausalConvWithState")


@dataclass(frozen=True)
class Part:
    """Nodes that run as one, in the order of the graph; a plugin is one node."""

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    is_plugin: bool


def is_plugin(node: onnx.NodeProto) -> bool:
    """Whether TensorRT looks for a plugin."""
    return node.domain not in STANDARD or node.op_type in STANDARD_PLUGINS


def space_of(node: onnx.NodeProto) -> str:
    """The namespace of its plugin."""
    return "" if node.domain in STANDARD else node.domain


def partition(graph: onnx.GraphProto) -> list[Part]:
    """The parts in an order in which each has its inputs.

    Initializers are no inputs of segments; those of plugins are made by a segment, as all that a
    plugin reads is device memory.
    """
    of_plugins = {name for node in graph.node if is_plugin(node) for name in node.input}
    constants = {x.name for x in graph.initializer} - of_plugins
    made_first = [
        onnx.helper.make_node("Constant", [], [x.name], value=x)
        for x in graph.initializer if x.name in of_plugins
    ]  # fmt: skip
    runs: list[list[onnx.NodeProto]] = []
    for node in (*made_first, *graph.node):
        if not runs or is_plugin(node) or is_plugin(runs[-1][0]):
            runs.append([])
        runs[-1].append(node)
    wanted_later = {x.name for x in graph.output}
    parts = []
    for nodes in reversed(runs):
        plugin = is_plugin(nodes[0])
        made = [name for node in nodes for name in node.output if name]
        used = list(dict.fromkeys(name for node in nodes for name in used_by(node)))
        inputs = tuple(x for x in used if x not in made and (x not in constants))
        outputs = tuple(made if plugin else (x for x in made if x in wanted_later))
        wanted_later |= set(inputs)
        if outputs:
            parts.append(Part(tuple(nodes), inputs, outputs, plugin))
    return parts[::-1]


def used_by(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, in subgraphs too."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inner = {name for x in attribute.g.node for name in x.output}
            inner |= {x.name for x in (*attribute.g.input, *attribute.g.initializer)}
            found += [x for n in attribute.g.node for x in used_by(n) if x not in inner]
            found += [x.name for x in attribute.g.output if x.name not in inner]
    return found


def aliases(graph: onnx.GraphProto) -> dict[str, str]:
    """Output → the input that it updates in place: a cache, by TensorScatter (KV_CACHE_UPDATE)."""
    inputs = {x.name for x in graph.input}
    outputs = {x.name for x in graph.output}
    return {
        node.output[0]: node.input[0] for node in graph.node
        if node.op_type == "TensorScatter" and not node.domain and node.input[0] in inputs
        and node.output[0] in outputs
    }  # fmt: skip
