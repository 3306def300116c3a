"""Function bodies of linear layers with narrow weights, and the tables of their formats.

In ONNX's own text, unlike the other bodies: a runtime that runs experts one by one needs them too,
and has no PyTorch and no onnxscript.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

from glm_trt.model.stored_weights import E2M1_OF_BYTE, E4M3_OF_BYTE

OPSET = 27  # none of the operators used in bodies changed between 23 and 27 for our dtypes
# By a byte as int8: a negative index counts from the end, which is the byte's place as unsigned.
E4M3_TABLE = numpy_helper.from_array(E4M3_OF_BYTE)  # [256]
E2M1_TABLE = numpy_helper.from_array(np.ascontiguousarray(E2M1_OF_BYTE))  # [256, 2]
_TABLES = {"e4m3_table": E4M3_TABLE, "e2m1_table": E2M1_TABLE}

# x [T, in], weight int8 [out, in], scale [⌈out/128⌉, ⌈in/128⌉] → [T, out].
_FP8_LINEAR = """
Fp8Linear <quantize_activations> (x, weight, scale) => (y) {
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    block = Constant <value_int = 128> ()
    out = Shape <start = 0, end = 1> (weight)
    count = Shape <start = 1, end = 2> (weight)
    out_number = Squeeze (out)
    each_row = Range (zero, out_number, one)
    rows = Div (each_row, block)
    count_number = Squeeze (count)
    each_column = Range (zero, count_number, one)
    columns = Div (each_column, block)
    scale_of_row = Gather <axis = 0> (scale, rows)
    scales = Gather <axis = 1> (scale_of_row, columns)
    bytes = Cast <to = 6> (weight)
    codes = Gather <axis = 0> (e4m3_table, bytes)
    dense = Mul (codes, scales)

    # Groups of 128, the last filled up with zeros.
    given = Cast <to = 1> (x)
    groups = Shape <start = 1, end = 2> (scale)
    whole = Mul (groups, block)
    missing = Sub (whole, count)
    no_pads = Constant <value_ints = [0, 0, 0]> ()
    pads = Concat <axis = 0> (no_pads, missing)
    padded = Pad (given, pads)
    tokens = Shape <start = 0, end = 1> (x)
    block_width = Constant <value_ints = [128]> ()
    by_group = Concat <axis = 0> (tokens, groups, block_width)
    grouped = Reshape <allowzero = 1> (padded, by_group)
    last = Constant <value_ints = [-1]> ()
    sizes = Abs (grouped)
    found = ReduceMax (sizes, last)
    least = Constant <value_float = 1e-10> ()
    largest = Max (found, least)
    limit = Constant <value_float = 448.0> ()
    steps = Div (largest, limit)
    scaled = Div (grouped, steps)
    narrow = Cast <to = 17> (scaled)  # FLOAT8E4M3FN, and back
    rounded = Cast <to = 1> (narrow)
    restored = Mul (rounded, steps)
    padded_shape = Shape (padded)
    flat = Reshape <allowzero = 1> (restored, padded_shape)
    from = Constant <value_ints = [0]> ()
    axis = Constant <value_ints = [1]> ()
    quantized = Slice (flat, from, count, axis)

    wanted = Constant <value_int: int = @quantize_activations> ()
    is_wanted = Equal (wanted, one)
    chosen = Where (is_wanted, quantized, given)
    product = Gemm <transB = 1> (chosen, dense)
    y = CastLike (product, x)
}
"""

# x [T, in], weight int8 [out, in/2], scale int8 [out, in/16], global_scale [1] → [T, out].
_NVFP4_LINEAR = """
Nvfp4Linear (x, weight, scale, global_scale) => (y) {
    bytes = Cast <to = 6> (weight)
    pairs = Gather <axis = 0> (e2m1_table, bytes)
    scale_bytes = Cast <to = 6> (scale)
    scales = Gather <axis = 0> (e4m3_table, scale_bytes)

    # [out, in/2, 2] and [out, in/16] as [out, in/16, 16] and [out, in/16, 1].
    scale_shape = Shape (scale)
    group = Constant <value_ints = [16]> ()
    by_group = Concat <axis = 0> (scale_shape, group)
    grouped = Reshape (pairs, by_group)
    last = Constant <value_ints = [-1]> ()
    scale_of_group = Unsqueeze (scales, last)
    scaled = Mul (grouped, scale_of_group)
    out = Shape <start = 0, end = 1> (weight)
    in = Shape <start = 1, end = 2> (x)
    whole = Concat <axis = 0> (out, in)
    values = Reshape (scaled, whole)
    dense = Mul (values, global_scale)

    given = Cast <to = 1> (x)
    product = Gemm <transB = 1> (given, dense)
    y = CastLike (product, x)
}
"""


def linear_bodies() -> dict[str, onnx.FunctionProto]:
    """ONNX op type → its function body, of the linear layers with narrow weights."""
    return {proto.name: proto for proto in (_parsed(_FP8_LINEAR), _parsed(_NVFP4_LINEAR))}


def _parsed(text: str) -> onnx.FunctionProto:
    """The body; tables that it reads become constants at its beginning."""
    header = f'<domain: "glm_trt", opset_import: ["": {OPSET}]>'
    body = onnx.parser.parse_function(header + text)
    read = {name for node in body.node for name in node.input}
    tables = [
        helper.make_node("Constant", [], [name], value=tensor)
        for name, tensor in _TABLES.items()
        if name in read
    ]
    nodes = [*tables, *body.node]
    body.ClearField("node")
    body.node.extend(nodes)
    for i, node in enumerate(body.node):
        node.name = f"n{i}"
    return body
