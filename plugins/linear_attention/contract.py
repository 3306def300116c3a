"""The contract of linear attention with a matrix-valued state."""

from __future__ import annotations

from glm_trt.plugins.common.contract import STANDARD, STATE, Choice, Contract, Port

RULES = ("linear", "gated", "delta", "gated_delta")

CONTRACT = Contract(
    name="LinearAttention",
    torch_name="linear_attention",
    doc="S = exp(g) S + b k (v - exp(g) S'k)', o = scale S'q; which of g and b there are, and "
    "whether the state is read back, is the update rule's.",
    inputs=(
        Port("query", ("B", "S", "QW")),
        Port("key", ("B", "S", "KW")),
        Port("value", ("B", "S", "VW")),
        Port("past_state", ("B", "H", "dk", "dv"), STATE, optional=True),
        Port("decay", ("B", "S", "G"), optional=True),
        Port("beta", ("B", "S", "R"), optional=True),
    ),
    outputs=(
        Port("output", ("B", "S", "OW")),
        Port("present_state", ("B", "H", "dk", "dv"), STATE),
    ),
    attributes={
        "q_num_heads": int,
        "kv_num_heads": int,
        "update_rule": Choice(RULES),
        "scale": float,
    },
    derived={
        "H": "kv_num_heads",
        "dk": "KW // kv_num_heads",
        "dv": "VW // kv_num_heads",
        "OW": "q_num_heads * (VW // kv_num_heads)",
    },
    tolerance={"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2},
    domain=STANDARD,
)
