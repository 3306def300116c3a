"""The contract of sparse MLA."""

from __future__ import annotations

from glm_trt.plugins.common.contract import Contract, Port

CONTRACT = Contract(
    name="SparseMla",
    torch_name="sparse_mla",
    doc="softmax(q.c * scale) c[:value_width] over the selected cache entries; -1 is no entry.",
    inputs=(
        Port("query", ("B", "S", "H", "D")),
        Port("cache", ("B", "1", "C", "D")),
        Port("indices", ("B", "S", "K"), "int32"),
    ),
    outputs=(Port("latent", ("B", "S", "H", "R")),),
    attributes={"scale": float, "value_width": int},
    derived={"R": "value_width"},
    tolerance={"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2},
)
