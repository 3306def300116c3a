"""Nodes that make an absent optional input as zeros, which mean the same.

An operator of ONNX that may leave out an input before one that it gives has an `absent_inputs.py`:
`zeros(node, index, fresh)` gives the nodes, the last of which gives the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

Namer = Callable[[str], str]  # a name that no value has, from how it shall begin


def sizes_constant(values: list[int], fresh: Namer) -> onnx.NodeProto:
    """A constant of int64."""
    tensor = numpy_helper.from_array(np.array(values, np.int64))
    return helper.make_node("Constant", [], [fresh("zeros_sizes")], value=tensor)


def zeros_of(shape: str, like: str, fresh: Namer) -> Iterator[onnx.NodeProto]:
    """Zeros of the shape that a value holds, of the dtype of another."""
    zeros = helper.make_node("ConstantOfShape", [shape], [fresh("zeros_float")])
    yield zeros
    yield helper.make_node("CastLike", [zeros.output[0], like], [fresh("zeros")])
