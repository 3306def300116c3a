"""The contract of linear layers with FP8 weights."""

from __future__ import annotations

from glm_trt.plugins.common.contract import Contract, NarrowLinear, Port

CONTRACT = Contract(
    name="Fp8Linear",
    torch_name="fp8_linear",
    doc="W x with W = e4m3(weight) * scale of its block of 128 x 128; the last blocks may be "
    "partial. quantize_activations 1: x = e4m3(x / s) * s first, s = max(max|x|, 1e-10) / 448 of "
    "each token's 128 inputs.",
    inputs=(
        Port("x", ("T", "in_features")),
        Port("weight", ("out_features", "in_features"), "int8"),
        Port("scale", ("out_blocks", "in_blocks"), "float32"),
    ),
    outputs=(Port("y", ("T", "out_features")),),
    attributes={"quantize_activations": int},
    derived={
        "out_blocks": "(out_features + 127) // 128",
        "in_blocks": "(in_features + 127) // 128",
    },
    tolerance={"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3},
    form=NarrowLinear(rows_of_scale=128),
)
