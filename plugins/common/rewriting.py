"""What the operators' rewrites for onnxruntime's CPU kernels share.

An operator whose function body is slow there has a `rewrite.py`, which says what a node becomes: a
call of a function in the domain `glm_trt.cpu`, its numbers baked in, which onnxruntime inlines.
Constants in it are typed tensors: onnxruntime 1.24 does not see the shape of others when it
inlines.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import onnx

CPU_DOMAIN = "glm_trt.cpu"


@dataclass(frozen=True)
class Rewritten:
    """What a node becomes.

    Attributes
    ----------
    function : a function of the node's inputs and outputs in ONNX's text, without its name.
    prepared : index of an input → what its name ends in now, in the `PREPARED` of `rewrite.py`, and
        its new shape. The input takes what that function makes of the weights.
    """

    function: str
    prepared: dict[int, tuple[str, tuple[int, ...]]] = field(default_factory=dict)


class Graph:
    """A graph as rewrites look at it; none sees what another one does."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.inputs = {value.name: value for value in model.graph.input}
        self.made_by = {name: node for node in model.graph.node for name in node.output}
        self.uses = Counter(name for node in model.graph.node for name in node.input)


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """The value of an attribute that the node has."""
    return next(onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Its sizes; 0 where one is not known."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
