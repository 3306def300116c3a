"""What MoE routing launches."""

from __future__ import annotations

from glm_trt.plugins.common.launch import Launch, Launches, Pick
from glm_trt.plugins.moe_routing.contract import CONTRACT

LAUNCHES = Launches(
    CONTRACT,
    steps=(
        Launch(
            "route_tokens",
            grid=("T", "1", "1"),
            arguments=(
                "logits", "correction_bias", "indices", "weights", "E", "n_group", "topk_group",
                "top_k", "norm_topk_prob", "routed_scaling_factor",
            ),
            constants={
                "BLOCK_E": Pick("E", (256, 512)),
                "BLOCK_K": Pick("top_k", (16,)),
            },
            # One warp: its reductions need no shared memory, and many tokens fit on a processor.
            configs={"*": {"num_warps": 1, "num_stages": 1}},
            aligned=("E",),
        ),
    ),
    limits=(
        ("E <= 512", "at most 512 experts"),
        ("top_k <= 16", "at most 16 experts a token"),
        ("n_group >= 1", "at least one group"),  # before what divides by it
        ("E % n_group == 0", "experts in groups of equal size"),
        (
            "top_k <= min(topk_group, n_group) * (E // n_group)",
            "no more experts a token than kept groups have",
        ),
    ),
)  # fmt: skip
