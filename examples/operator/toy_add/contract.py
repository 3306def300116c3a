"""The contract of ToyAdd."""

from __future__ import annotations

from glm_trt.plugins.common.contract import Contract, Port

CONTRACT = Contract(
    name="ToyAdd",
    torch_name="toy_add",
    doc="x + scale * other.",
    inputs=(Port("x", ("T", "width")), Port("other", ("T", "width"))),
    outputs=(Port("y", ("T", "width")),),
    attributes={"scale": float},
    tolerance={"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2},
)
