"""The contract of causal depthwise convolution that carries its last columns."""

from __future__ import annotations

from glm_trt.plugins.common.contract import STANDARD, Choice, Contract, Port

CONTRACT = Contract(
    name="CausalConvWithState",
    torch_name="causal_conv_with_state",
    doc="y = activation(bias + sum over j of weight[j] x[t - K + 1 + j]); what comes before x is "
    "the past state, or zeros.",
    inputs=(
        Port("input", ("B", "C", "L")),
        Port("weight", ("C", "1", "K")),
        Port("bias", ("C",), optional=True),
        Port("past_state", ("B", "C", "P"), optional=True),
    ),
    outputs=(Port("output", ("B", "C", "L")), Port("present_state", ("B", "C", "P"))),
    attributes={"activation": Choice(("none", "silu", "swish"))},
    derived={"1": "1", "P": "K - 1"},
    tolerance={"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2},
    domain=STANDARD,
)
