"""The contract of linear layers with NVFP4 weights."""

from __future__ import annotations

from glm_trt.plugins.common.contract import Contract, NarrowLinear, Port

CONTRACT = Contract(
    name="Nvfp4Linear",
    torch_name="nvfp4_linear",
    doc="W x with W = e2m1(weight) * e4m3(scale) * global_scale; a byte holds two weights, the "
    "first in its low bits.",
    inputs=(
        Port("x", ("T", "in_features")),
        Port("weight", ("out_features", "in_bytes"), "int8"),
        Port("scale", ("out_features", "in_groups"), "int8"),
        Port("global_scale", ("one",), "float32"),
    ),
    outputs=(Port("y", ("T", "out_features")),),
    attributes={},
    derived={"in_bytes": "in_features // 2", "in_groups": "in_features // 16", "one": "1"},
    tolerance={"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3},
    form=NarrowLinear(rows_of_scale=1),
)
