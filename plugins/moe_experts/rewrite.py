"""MoE experts on onnxruntime's CPU kernels."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from glm_trt.model.checkpoint.bindings import Binding, TensorSource, bound_expert
from glm_trt.plugins.common.rewriting import Graph, Rewritten, attribute, shape_of
from glm_trt.plugins.moe_routing.contract import CONTRACT as ROUTING

# Behind the name of an input that takes what `parted_experts` makes.
PARTED_GATE_UP, PARTED_DOWN = ".parted_gate_up", ".parted_down"


def rewrite(node: onnx.NodeProto, graph: Graph, parts: int) -> Rewritten | None:
    """onnxruntime's `com.microsoft.MoE`, which reads only the chosen experts.

    The kernel gives each thread a contiguous range of the experts, and routes by itself. So

    1. each expert is cut into `parts` along its width, ordered part by part: with as many parts
       as threads every thread has the same work, whichever experts are chosen;
    2. it is fed log(w) of the chosen experts and −1e30 of the others, so that its softmax over
       the `parts` · k best gives w / (parts · Σw); the result is multiplied by `parts` · Σw.
       A weight of zero is floored (1e-37): were all zero, it would choose other experts.

    Rewritten where all of this holds, else the node stays:

    1. indices and weights come from one routing whose `routed_scaling_factor` is above
       zero: then the experts of a token are distinct and no weight is negative;
    2. the stacked weights are float32 inputs of the graph of static shape, used by this node
       alone; they get another name and take what `parted_experts` makes;
    3. `parts` divides the experts' width.
    """
    routing, weights = graph.made_by.get(node.input[2]), node.input[3:5]
    if routing is None or (routing.domain, routing.op_type) != (ROUTING.domain, ROUTING.name):
        return None
    if list(routing.output) != list(node.input[1:3]):
        return None
    if attribute(routing, "routed_scaling_factor") <= 0:
        return None
    values = [graph.inputs.get(name) for name in weights]
    if any(graph.uses[name] != 1 for name in weights):
        return None
    shapes = [shape_of(value) for value in values if value is not None and _is_static_float(value)]
    if len(shapes) < len(weights):
        return None
    experts, _, width = shapes[1]
    if width % parts:
        return None
    prepared = {
        3 + i: (suffix, _parted_shape(shape, parts, suffix))
        for i, (suffix, shape) in enumerate(zip(PREPARED, shapes, strict=True))
    }
    return Rewritten(_function(experts, attribute(routing, "top_k"), parts), prepared)


def parted_experts(
    suffix: str, binding: Binding, source: TensorSource, parts: int
) -> NDArray[np.float32]:
    """The array of a parted input, filled expert by expert: no second copy of the whole.

    gate_up [E, 2I, H], gate rows first → [parts · E, 2I / parts, H], gate and up rows by turns;
    down [E, H, I] → [parts · E, H, I / parts].
    """
    experts, rows, cols = binding.shape
    result = np.empty(_parted_shape(binding.shape, parts, suffix), np.float32)
    by_part = result.reshape(parts, experts, *result.shape[1:])
    for expert in range(experts):
        weight = bound_expert(binding, source, expert)
        if suffix == PARTED_GATE_UP:
            halves = weight.reshape(2, parts, rows // 2 // parts, cols)
            ordered = halves.transpose(1, 2, 0, 3).reshape(parts, -1, cols)
        else:
            ordered = weight.reshape(rows, parts, cols // parts).transpose(1, 0, 2)
        by_part[:, expert] = ordered
    return result


# What the renamed inputs take: each is a function of a binding, its source and the parts.
PREPARED = {suffix: partial(parted_experts, suffix) for suffix in (PARTED_GATE_UP, PARTED_DOWN)}


def _parted_shape(shape: tuple[int, ...], parts: int, suffix: str) -> tuple[int, ...]:
    experts, rows, cols = shape
    if suffix == PARTED_GATE_UP:
        return experts * parts, rows // parts, cols
    return experts * parts, rows, cols // parts


def _is_static_float(value: onnx.ValueInfoProto) -> bool:
    shape = shape_of(value)
    is_float = value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    return is_float and len(shape) == 3 and all(shape)


def _function(experts: int, top_k: int, parts: int) -> str:
    return f"""(x, indices, weights, gate_up, down) => (y) {{
    tokens = Shape <start = 0, end = 1> (indices)
    experts = Constant <value = int64[1] {{{experts}}}> ()
    shape = Concat <axis = 0> (tokens, experts)
    none = ConstantOfShape <value = float[1] {{-1e30}}> (shape)
    floor = Constant <value = float {{1e-37}}> ()
    floored = Max (weights, floor)
    logits = Log (floored)
    columns = Cast <to = 7> (indices)
    chosen = ScatterElements <axis = 1> (none, columns, logits)
    tiled = Concat <axis = 1> ({", ".join(["chosen"] * parts)})
    mean = com.microsoft.MoE <
        k = {top_k * parts}, normalize_routing_weights = 1, activation_type = "swiglu",
        swiglu_fusion = 1, activation_alpha = 1.0, activation_beta = 0.0
    > (x, tiled, gate_up, , down)
    last = Constant <value = int64[1] {{-1}}> ()
    total = ReduceSum <keepdims = 1> (weights, last)
    parts = Constant <value = float {{{float(parts)}}}> ()
    scale = Mul (total, parts)
    y = Mul (mean, scale)
}}"""
