"""What the causal convolution computes with where an input is absent."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

from glm_trt.plugins.common.zeros import Namer, zeros_of


def zeros(node: onnx.NodeProto, _: int, fresh: Namer) -> Iterator[onnx.NodeProto]:
    """The bias [C], of the input's dtype; nothing else stands before an input that is given."""
    shape = helper.make_node("Shape", [node.input[1]], [fresh("zeros_Shape")], start=0, end=1)
    yield shape
    yield from zeros_of(shape.output[0], node.input[0], fresh)
