"""What linear attention computes with where an input is absent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import helper

from glm_trt.plugins.common.zeros import Namer, sizes_constant, zeros_of


def zeros(node: onnx.NodeProto, index: int, fresh: Namer) -> Iterator[onnx.NodeProto]:
    """past_state [B, H, dk, dv] or decay [B, S, H], of the query's dtype; the rule `delta`, which
    may have no decay, becomes `gated_delta`, of which it is the case e⁰ = 1.
    """
    query, key, value = node.input[:3]
    heads = next(a.i for a in node.attribute if a.name == "kv_num_heads")
    parts: list[str] = []

    def add(op: str, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
        made = helper.make_node(op, inputs, [fresh(f"zeros_{op}")], **attributes)
        parts.append(made.output[0])
        return made

    constant = sizes_constant([heads], fresh)
    yield constant
    if index == 3:  # past_state
        yield add("Shape", [query], start=0, end=1)
        sizes = [parts[-1], constant.output[0]]
        for packed in (key, value):
            yield add("Shape", [packed], start=2, end=3)
            yield add("Div", [parts[-1], constant.output[0]])
            sizes.append(parts[-1])
    else:  # decay
        for attribute in node.attribute:
            if attribute.name == "update_rule" and attribute.s == b"delta":
                attribute.s = b"gated_delta"
        yield add("Shape", [key], start=0, end=2)
        sizes = [parts[-1], constant.output[0]]
    yield add("Concat", sizes, axis=0)
    yield from zeros_of(parts[-1], query, fresh)
