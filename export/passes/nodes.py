"""Walking the nodes of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of the graph, of function bodies, and of graphs within nodes of either."""
    yield from _with_inner(model.graph.node)
    for function in model.functions:
        yield from _with_inner(function.node)


def _with_inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _with_inner(graph.node)
