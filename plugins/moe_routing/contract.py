"""The contract of MoE routing."""

from __future__ import annotations

from glm_trt.plugins.common.contract import Chooser, Contract, Port

CONTRACT = Contract(
    name="MoeRouting",
    torch_name="moe_routing",
    doc="Experts of each token, best first, and their weights.",
    inputs=(
        Port("logits", ("T", "E"), "float32"),
        Port("correction_bias", ("E",), "float32"),
    ),
    outputs=(Port("indices", ("T", "k"), "int32"), Port("weights", ("T", "k"), "float32")),
    attributes={
        "top_k": int,
        "n_group": int,
        "topk_group": int,
        "norm_topk_prob": int,
        "routed_scaling_factor": float,
    },
    derived={"k": "top_k"},
    tolerance={"float32": 1e-6},
    form=Chooser(output="expert_indices"),
)
