"""Graph rewrites of the onnxruntime backend: faster forms for its CPU kernels.

Each pass takes a model and returns a rewritten copy, or the very model where no case applies. A
node that is rewritten becomes a call of a function in the domain `glm_trt.cpu`, its numbers baked
in, which onnxruntime inlines. Constants are typed tensors: onnxruntime 1.24 does not see the shape
of others when it inlines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from glm_trt.model.bindings import Binding, TensorSource, bound_expert

DOMAIN = "glm_trt.cpu"
FEW_TOKENS = 8
# Behind the name of an input that takes what `parted_experts` makes.
PARTED_GATE_UP, PARTED_DOWN = ".parted_gate_up", ".parted_down"


def rewrite(model: onnx.ModelProto, parts: int) -> onnx.ModelProto:
    """Every pass in turn; `parts` as in `fuse_experts`."""
    model = route_ungrouped(slice_attended(fuse_experts(model, parts)))
    return convolve_few_directly(attend_linearly_in_one_kernel(model))


def fuse_experts(model: onnx.ModelProto, parts: int) -> onnx.ModelProto:
    """`MoeExperts` → onnxruntime's `com.microsoft.MoE`, which reads only the chosen experts.

    The kernel gives each thread a contiguous range of the experts, and routes by itself. So

    1. each expert is cut into `parts` along its width, ordered part by part: with as many parts
       as threads every thread has the same work, whichever experts are chosen;
    2. it is fed log(w) of the chosen experts and −1e30 of the others, so that its softmax over
       the `parts` · k best gives w / (parts · Σw); the result is multiplied by `parts` · Σw.
       A weight of zero is floored (1e-37): were all zero, it would choose other experts.

    Rewritten where all of this holds, else the node stays:

    1. indices and weights come from one `MoeRouting` whose `routed_scaling_factor` is above
       zero: then the experts of a token are distinct and no weight is negative;
    2. the stacked weights are float32 inputs of the graph of static shape, used by this node
       alone; they get another name and take what `parted_experts` makes;
    3. `parts` divides the experts' width.
    """
    routed = {node.output[1]: node for node in model.graph.node if _is(node, "MoeRouting")}
    inputs = {value.name: value for value in model.graph.input}
    uses = [name for node in model.graph.node for name in node.input]

    def body(node: onnx.NodeProto) -> str | None:
        routing, weights = routed.get(node.input[2]), node.input[3:5]
        if routing is None or routing.output[0] != node.input[1]:
            return None
        if _attribute(routing, "routed_scaling_factor") <= 0:
            return None
        if not all(
            uses.count(name) == 1 and _is_static_float(inputs.get(name)) for name in weights
        ):
            return None
        experts, _, width = _shape(inputs[weights[1]])
        return None if width % parts else _experts_body(experts, _top_k(routing), parts)

    rewritten = _replace(model, "MoeExperts", body)
    for node in rewritten.graph.node:
        if node.domain == DOMAIN and node.op_type.startswith("MoeExperts"):
            for i, suffix in ((3, PARTED_GATE_UP), (4, PARTED_DOWN)):
                _rename_input(rewritten.graph, node, i, suffix, parts)
    return rewritten


def route_ungrouped(model: onnx.ModelProto) -> onnx.ModelProto:
    """`MoeRouting` that keeps every group → the best of all experts, in a third of the nodes.

    Rewritten where `topk_group` is `n_group`; the arithmetic is the same, bit for bit.
    """

    def body(node: onnx.NodeProto) -> str | None:
        if _attribute(node, "n_group") != _attribute(node, "topk_group"):
            return None
        normalised = _attribute(node, "norm_topk_prob") == 1
        return _routing_body(_top_k(node), normalised, _attribute(node, "routed_scaling_factor"))

    return _replace(model, "MoeRouting", body)


def slice_attended(model: onnx.ModelProto) -> onnx.ModelProto:
    """`SparseMla` → the same, but the values are cut out of its result, not of the cache.

    That copies no cache, for D / R of the second product's work: a quarter less time for one
    token, the same for many. Always rewritten.
    """

    def body(node: onnx.NodeProto) -> str | None:
        return _attention_body(_attribute(node, "scale"), _attribute(node, "value_width"))

    return _replace(model, "SparseMla", body)


def attend_linearly_in_one_kernel(model: onnx.ModelProto) -> onnx.ModelProto:
    """`LinearAttention` → `com.microsoft.LinearAttention`: the same contract, a faster kernel.

    Takes a third to a seventh of the standard node's time, for one token and for hundreds.
    (`com.microsoft.GatedDeltaNet` takes twice the standard node's at real head widths, and wants
    the state transposed.) Always rewritten.
    """

    def body(node: onnx.NodeProto) -> str:
        q_heads, kv_heads = _attribute(node, "q_num_heads"), _attribute(node, "kv_num_heads")
        rule = _attribute(node, "update_rule").decode()
        return _linear_attention_body(q_heads, kv_heads, rule, _attribute(node, "scale"))

    return _replace(model, "LinearAttention", body, "")


def convolve_few_directly(model: onnx.ModelProto) -> onnx.ModelProto:
    """`CausalConvWithState` → up to `FEW_TOKENS` tokens by `com.microsoft.CausalConvWithState`.

    Its kernel takes a ninth to a quarter of the standard node's time for one token, as much for 16
    and two to three times as much for more: there the standard node stays. Always rewritten.
    """

    def body(node: onnx.NodeProto) -> str:
        return _convolution_body(_attribute(node, "activation").decode())

    return _replace(model, "CausalConvWithState", body, "")


def parted_experts(
    binding: Binding, source: TensorSource, parts: int, suffix: str
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


def _parted_shape(shape: tuple[int, ...], parts: int, suffix: str) -> tuple[int, ...]:
    experts, rows, cols = shape
    if suffix == PARTED_GATE_UP:
        return experts * parts, rows // parts, cols
    return experts * parts, rows, cols // parts


def _rename_input(
    graph: onnx.GraphProto, node: onnx.NodeProto, i: int, suffix: str, parts: int
) -> None:
    value = next(value for value in graph.input if value.name == node.input[i])
    shape = _parted_shape(_shape(value), parts, suffix)
    node.input[i] = value.name + suffix
    value.CopyFrom(
        onnx.helper.make_tensor_value_info(value.name + suffix, onnx.TensorProto.FLOAT, shape)
    )


def _replace(
    model: onnx.ModelProto,
    op_type: str,
    body: Callable[[onnx.NodeProto], str | None],
    domain: str = "glm_trt",
) -> onnx.ModelProto:
    """Every node of `op_type` for which `body` gives a function's text calls that function."""
    found = {i: body(node) for i, node in enumerate(model.graph.node) if _is(node, op_type, domain)}
    texts = {i: text for i, text in found.items() if text is not None}
    if not texts:
        return model
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for domain in {DOMAIN, "com.microsoft"} - set(versions):
        rewritten.opset_import.add(domain=domain, version=1)
    for i, text in texts.items():
        name = f"{op_type}_{i}"
        header = f'<domain: "{DOMAIN}", opset_import: ["": {versions[""]}, "com.microsoft": 1]>'
        rewritten.functions.append(onnx.parser.parse_function(f"{header} {name} {text}"))
        node = rewritten.graph.node[i]
        node.domain, node.op_type = DOMAIN, name
        del node.attribute[:]
    return rewritten


def _is(node: onnx.NodeProto, op_type: str, domain: str = "glm_trt") -> bool:
    return (node.domain, node.op_type) == (domain, op_type)


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)


def _top_k(node: onnx.NodeProto) -> int:
    return int(_attribute(node, "top_k"))


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _is_static_float(value: onnx.ValueInfoProto | None) -> bool:
    if value is None or value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        return False
    shape = _shape(value)
    return len(shape) == 3 and all(shape)


def _experts_body(experts: int, top_k: int, parts: int) -> str:
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


def _routing_body(top_k: int, normalised: bool, factor: float) -> str:
    normalise = """
    last = Constant <value = int64[1] {-1}> ()
    total = ReduceSum <keepdims = 1> (picked, last)
    tiny = Constant <value = float {1e-20}> ()
    safe = Add (total, tiny)
    shares = Div (picked, safe)"""
    return f"""(logits, correction_bias) => (indices, weights) {{
    scores = Sigmoid (logits)
    choice = Add (scores, correction_bias)
    count = Constant <value = int64[1] {{{top_k}}}> ()
    best, chosen = TopK <axis = -1> (choice, count)
    picked = GatherElements <axis = 1> (scores, chosen){normalise if normalised else ""}
    factor = Constant <value = float {{{factor!r}}}> ()
    weights = Mul ({"shares" if normalised else "picked"}, factor)
    indices = Cast <to = 6> (chosen)
}}"""


def _attention_body(scale: float, value_width: int) -> str:
    return f"""(query, cache, indices) => (latent) {{
    zero = Constant <value = int64[1] {{0}}> ()
    one = Constant <value = int64[1] {{1}}> ()
    two = Constant <value = int64[1] {{2}}> ()
    three = Constant <value = int64[1] {{3}}> ()
    capacity = Shape <start = 2, end = 3> (cache)
    wide = Add (capacity, one)
    rows = Shape <start = 0, end = 2> (indices)
    shape = Concat <axis = 0> (rows, wide)
    hidden = ConstantOfShape <value = float[1] {{-inf}}> (shape)
    long = Cast <to = 7> (indices)
    absent = Constant <value = int64 {{0}}> ()
    is_absent = Less (long, absent)
    columns = Where (is_absent, capacity, long)
    each = Shape (indices)
    zeros = ConstantOfShape <value = float[1] {{0.0}}> (each)
    marked = ScatterElements <axis = 2> (hidden, columns, zeros)
    mask = Slice (marked, zero, capacity, two)
    masks = Unsqueeze (mask, two)
    turned = Transpose <perm = [0, 1, 3, 2]> (cache)
    dots = MatMul (query, turned)
    scale = Constant <value = float {{{scale!r}}}> ()
    scaled = Mul (dots, scale)
    masked = Add (scaled, masks)
    probabilities = Softmax <axis = -1> (masked)
    attended = MatMul (probabilities, cache)
    width = Constant <value = int64[1] {{{value_width}}}> ()
    latent = Slice (attended, zero, width, three)
}}"""


def _linear_attention_body(q_heads: int, kv_heads: int, rule: str, scale: float) -> str:
    return f"""(query, key, value, past, decay, beta) => (output, present) {{
    output, present = com.microsoft.LinearAttention <
        q_num_heads = {q_heads}, kv_num_heads = {kv_heads}, update_rule = "{rule}",
        scale = {scale!r}
    > (query, key, value, past, decay, beta)
}}"""


def _convolution_body(activation: str) -> str:
    call = f'CausalConvWithState <activation = "{activation}"> (x, weight, bias, past)'
    return f"""(x, weight, bias, past) => (y, present) {{
    length = Shape <start = 2, end = 3> (x)
    few = Constant <value = int64[1] {{{FEW_TOKENS}}}> ()
    is_few = LessOrEqual (length, few)
    scalar = Constant <value = int64[1] {{0}}> ()
    directly = Squeeze (is_few, scalar)
    y, present = If (directly) <
        then_branch = direct () => (float[b, c, s] y_few, float[b, c, k] present_few) {{
            y_few, present_few = com.microsoft.{call}
        }},
        else_branch = standard () => (float[b, c, s] y_many, float[b, c, k] present_many) {{
            y_many, present_many = {call}
        }}
    >
}}"""
