"""Standard-ONNX function bodies of the operators, so that any runtime runs the graphs.

They are decompositions to be right everywhere (also where TensorRT parses them), not fast ones:
the experts' body computes every expert, the attention's attends densely under a mask.
"""
# mypy: ignore-errors

from __future__ import annotations

import onnx
from onnxscript import script, values
from onnxscript.onnx_opset import opset23 as op

from glm_trt.plugins.linear_bodies import E2M1_TABLE, E4M3_TABLE, OPSET, linear_bodies

GLM_TRT = values.Opset("glm_trt", 1)


@script(GLM_TRT, default_opset=op)
def MoeRouting(
    logits, correction_bias, top_k: int, n_group: int, topk_group: int, norm_topk_prob: int,
    routed_scaling_factor: float,
):  # fmt: skip
    one = op.Constant(value_ints=[1])
    scores = op.Sigmoid(logits)
    choice = op.Add(scores, correction_bias)
    groups = op.Reshape(op.Constant(value_int=n_group), one)
    # The group's size is computed, not left to -1, which no runtime can infer for zero tokens.
    size = op.Div(op.Shape(logits, start=1, end=2), groups)
    tokens = op.Shape(logits, start=0, end=1)
    grouped = op.Reshape(choice, op.Concat(tokens, groups, size, axis=0), allowzero=1)
    best_two, _ = op.TopK(grouped, op.Constant(value_ints=[2]), axis=-1)
    group_scores = op.ReduceSum(best_two, op.Constant(value_ints=[-1]), keepdims=0)
    kept_count = op.Reshape(op.Constant(value_int=topk_group), one)
    _, kept = op.TopK(group_scores, kept_count, axis=-1)
    zeros = op.Mul(op.Cast(op.Less(group_scores, group_scores), to=1), 1.0)
    ones = op.Add(op.Cast(kept, to=1), op.Neg(op.Cast(kept, to=1)))
    mask = op.ScatterElements(zeros, kept, op.Add(ones, 1.0), axis=1)
    masked = op.Where(
        op.Greater(op.Unsqueeze(mask, op.Constant(value_ints=[-1])), 0.0),
        grouped,
        op.Constant(value_float=float("-inf")),
    )
    count = op.Reshape(op.Constant(value_int=top_k), one)
    _, chosen = op.TopK(op.Reshape(masked, op.Shape(choice), allowzero=1), count, axis=-1)
    picked = op.GatherElements(scores, chosen, axis=1)
    total = op.Add(op.ReduceSum(picked, op.Constant(value_ints=[-1]), keepdims=1), 1e-20)
    normalise = op.Equal(op.Constant(value_int=norm_topk_prob), 1)
    weights = op.Mul(
        op.Where(normalise, op.Div(picked, total), picked),
        op.Constant(value_float=routed_scaling_factor),
    )
    return op.Cast(chosen, to=6), weights


@script(GLM_TRT, default_opset=op)
def MoeExperts(x, indices, weights, gate_up, down):
    tokens = op.Shape(x, start=0, end=1)
    experts = op.Shape(gate_up, start=0, end=1)
    empty = op.Expand(op.Constant(value_float=0.0), op.Concat(tokens, experts, axis=0))
    combine = op.ScatterElements(empty, op.Cast(indices, to=7), weights, axis=1)
    hit = op.ScatterElements(
        empty, op.Cast(indices, to=7), op.Add(op.Mul(weights, 0.0), 1.0), axis=1
    )
    both = op.MatMul(
        op.Unsqueeze(x, op.Constant(value_ints=[0])), op.Transpose(gate_up, perm=[0, 2, 1])
    )
    gate, up = op.Split(both, axis=-1, num_outputs=2)
    inner = op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
    parts = op.Cast(op.MatMul(inner, op.Transpose(down, perm=[0, 2, 1])), to=1)
    last = op.Constant(value_ints=[-1])
    scale = op.Unsqueeze(op.Transpose(combine, perm=[1, 0]), last)
    reached = op.Greater(op.Unsqueeze(op.Transpose(hit, perm=[1, 0]), last), 0.0)
    # Where, not a product: an expert that was not chosen may overflow, and inf times 0 is NaN.
    chosen = op.Where(reached, op.Mul(parts, scale), op.Constant(value_float=0.0))
    return op.CastLike(op.ReduceSum(chosen, op.Constant(value_ints=[0]), keepdims=0), x)


@script(GLM_TRT, default_opset=op)
def IndexerTopK(query, keys, weights, past_lengths, index_topk: int, scale: float):
    capacity = op.Shape(keys, start=2, end=3)
    length = op.Squeeze(op.Shape(query, start=1, end=2))
    transposed = op.Transpose(op.Cast(keys, to=1), perm=[0, 1, 3, 2])
    dots = op.Mul(op.MatMul(op.Cast(query, to=1), transposed), op.Constant(value_float=scale))
    two = op.Constant(value_ints=[2])
    scores = op.Squeeze(op.MatMul(op.Unsqueeze(weights, two), op.Relu(dots)), two)
    steps = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1))
    positions = op.Add(op.Unsqueeze(past_lengths, op.Constant(value_ints=[1])), steps)
    positions = op.Cast(op.Unsqueeze(positions, two), to=1)
    # Positions as float32: exact below 2^24, and TensorRT's TopK takes no int64.
    columns = op.Cast(
        op.Range(op.Constant(value_int=0), op.Squeeze(capacity), op.Constant(value_int=1)), to=1
    )
    visible = op.LessOrEqual(columns, positions)
    masked = op.Where(visible, scores, op.Constant(value_float=float("-inf")))
    count = op.Min(
        capacity, op.Reshape(op.Constant(value_int=index_topk), op.Constant(value_ints=[1]))
    )
    _, best = op.TopK(masked, count, axis=-1)
    chosen = op.Cast(best, to=1)
    none = op.Cast(capacity, to=1)
    kept = op.Where(op.LessOrEqual(chosen, positions), chosen, none)
    ordered, _ = op.TopK(kept, count, axis=-1, largest=0)
    return op.Cast(op.Where(op.Less(ordered, none), ordered, op.Constant(value_float=-1.0)), to=6)


@script(GLM_TRT, default_opset=op)
def SparseMla(query, cache, indices, scale: float, value_width: int):
    one = op.Constant(value_ints=[1])
    zero = op.Constant(value_ints=[0])
    capacity = op.Shape(cache, start=2, end=3)
    chosen = op.Cast(indices, to=7)
    columns = op.Where(op.Less(chosen, op.Constant(value_int=0)), capacity, chosen)
    shape = op.Concat(op.Shape(indices, start=0, end=2), op.Add(capacity, one), axis=0)
    empty = op.Expand(op.Constant(value_float=0.0), shape)
    marks = op.Add(op.Mul(op.Cast(indices, to=1), 0.0), 1.0)
    marked = op.ScatterElements(empty, columns, marks, axis=2)
    selected = op.Greater(op.Slice(marked, zero, capacity, op.Constant(value_ints=[2])), 0.0)
    dots = op.MatMul(query, op.Transpose(cache, perm=[0, 1, 3, 2]))
    scaled = op.Cast(op.Mul(dots, op.CastLike(op.Constant(value_float=scale), query)), to=1)
    masked = op.Where(
        op.Unsqueeze(selected, op.Constant(value_ints=[2])),
        scaled,
        op.Constant(value_float=float("-inf")),
    )
    probabilities = op.CastLike(op.Softmax(masked, axis=-1), query)
    width = op.Reshape(op.Constant(value_int=value_width), one)
    return op.MatMul(probabilities, op.Slice(cache, zero, width, op.Constant(value_ints=[3])))


@script(GLM_TRT, default_opset=op)
def CausalMla(query, cache, past_lengths, scale: float, value_width: int):
    one = op.Constant(value_ints=[1])
    zero = op.Constant(value_ints=[0])
    three = op.Constant(value_ints=[3])
    length = op.Squeeze(op.Shape(query, start=1, end=2))
    capacity = op.Squeeze(op.Shape(cache, start=2, end=3))
    steps = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1))
    columns = op.Range(op.Constant(value_int=0), capacity, op.Constant(value_int=1))
    past = op.Unsqueeze(past_lengths, one)
    positions = op.Unsqueeze(op.Add(past, steps), op.Constant(value_ints=[2, 3]))
    dots = op.MatMul(query, op.Transpose(cache, perm=[0, 1, 3, 2]))
    scaled = op.Cast(op.Mul(dots, op.CastLike(op.Constant(value_float=scale), query)), to=1)
    masked = op.Where(
        op.LessOrEqual(columns, positions), scaled, op.Constant(value_float=float("-inf"))
    )
    probabilities = op.CastLike(op.Softmax(masked, axis=-1), query)
    width = op.Reshape(op.Constant(value_int=value_width), one)
    values = op.Slice(cache, zero, width, three)
    # Where, not the probability 0 alone: behind the sequence may be NaN.
    written = op.Less(columns, op.Add(past, length))
    written = op.Unsqueeze(written, op.Constant(value_ints=[1, 3]))
    none = op.CastLike(op.Constant(value_float=0.0), cache)
    return op.MatMul(probabilities, op.Where(written, values, none))


@script(GLM_TRT, default_opset=op)
def Fp8MoeExperts(x, indices, weights, gate_up, gate_up_scale, down, down_scale):
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    block = op.Constant(value_int=128)
    table = op.Constant(value=E4M3_TABLE)
    width, hidden = op.Shape(down, start=2, end=3), op.Shape(down, start=1, end=2)
    inner = op.Div(op.Range(zero, op.Squeeze(width), one), block)
    outer = op.Div(op.Range(zero, op.Squeeze(hidden), one), block)
    both = op.Gather(op.Gather(gate_up_scale, inner, axis=2), outer, axis=3)
    codes = op.Gather(table, op.Cast(gate_up, to=6), axis=0)
    dense_gate_up = op.CastLike(op.Mul(codes, op.Reshape(both, op.Shape(gate_up))), x)
    scales = op.Gather(op.Gather(down_scale, outer, axis=1), inner, axis=2)
    dense = op.Mul(op.Gather(table, op.Cast(down, to=6), axis=0), scales)
    dense_down = op.CastLike(dense, x)
    return dense_gate_up, dense_down


@script(GLM_TRT, default_opset=op)
def Nvfp4MoeExperts(
    x, indices, weights, gate_up, gate_up_scale, gate_up_global, down, down_scale, down_global
):
    e2m1, e4m3 = op.Constant(value=E2M1_TABLE), op.Constant(value=E4M3_TABLE)
    last, group = op.Constant(value_ints=[-1]), op.Constant(value_ints=[16])
    pairs = op.Gather(e2m1, op.Cast(gate_up, to=6), axis=0)
    values_of = op.Gather(e4m3, op.Cast(gate_up_scale, to=6), axis=0)
    grouped = op.Reshape(pairs, op.Concat(op.Shape(gate_up_scale), group, axis=0))
    scaled = op.Mul(grouped, op.Unsqueeze(values_of, last))
    experts, hidden = op.Shape(down, start=0, end=1), op.Shape(down, start=1, end=2)
    # Gate and up apart, for the global scale of each.
    halves = op.Reshape(scaled, op.Concat(experts, op.Constant(value_ints=[2, -1]), axis=0))
    halves = op.Mul(halves, op.Unsqueeze(gate_up_global, last))
    shape = op.Concat(op.Shape(gate_up, start=0, end=2), hidden, axis=0)
    dense_gate_up = op.CastLike(op.Reshape(halves, shape), x)
    pairs_down = op.Gather(e2m1, op.Cast(down, to=6), axis=0)
    values_down = op.Gather(e4m3, op.Cast(down_scale, to=6), axis=0)
    grouped_down = op.Reshape(pairs_down, op.Concat(op.Shape(down_scale), group, axis=0))
    scaled_down = op.Mul(grouped_down, op.Unsqueeze(values_down, last))
    flat = op.Reshape(scaled_down, op.Concat(op.Shape(down, start=0, end=2), last, axis=0))
    of_expert = op.Unsqueeze(down_global, op.Constant(value_ints=[1, 2]))
    dense_down = op.CastLike(op.Mul(flat, of_expert), x)
    return dense_gate_up, dense_down


def _then_experts(dequantize: onnx.FunctionProto) -> onnx.FunctionProto:
    """A body that dequantises gate_up and down, followed by what MoeExperts does with them."""
    experts = MoeExperts.to_function_proto()
    names = dict(zip(experts.input[:3], dequantize.input[:3], strict=True))
    names |= dict(zip(experts.input[3:], dequantize.output, strict=True))
    for node in experts.node:
        copy = dequantize.node.add()
        copy.CopyFrom(node)
        copy.name = f"experts_{node.name}"
        copy.input[:] = [names.get(name, f"experts_{name}") for name in node.input]
        copy.output[:] = [f"experts_{name}" for name in node.output]
    dequantize.output[:] = [f"experts_{name}" for name in experts.output]
    return dequantize


def function_bodies() -> dict[str, onnx.FunctionProto]:
    """ONNX op type → its function body, at the opset of the exported graphs."""
    scripts = (MoeRouting, MoeExperts, IndexerTopK, SparseMla, CausalMla)
    protos = [body.to_function_proto() for body in scripts]
    protos += [_then_experts(body.to_function_proto()) for body in (Fp8MoeExperts, Nvfp4MoeExperts)]
    for proto in protos:
        for entry in proto.opset_import:
            if entry.domain == "":
                entry.version = OPSET
    return {proto.name: proto for proto in protos} | linear_bodies()
