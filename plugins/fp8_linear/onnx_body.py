"""A linear layer with FP8 weights in standard operators."""

from __future__ import annotations

import onnx

from glm_trt.plugins.common.onnx_text import parsed

# x [T, in], weight int8 [out, in], scale [⌈out/128⌉, ⌈in/128⌉] → [T, out].
_BODY = """
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


def body() -> onnx.FunctionProto:
    """The operator as standard ones."""
    return parsed(_BODY)
