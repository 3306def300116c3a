"""What the indexer top-k launches: scores of all visible positions, then the selection."""

from __future__ import annotations

from glm_trt.plugins.common.launch import Buffer, Launch, Pick, Plan
from glm_trt.plugins.indexer_topk import CONTRACT

PLAN = Plan(
    CONTRACT,
    launches=(
        Launch(
            "score_positions",
            grid=("cdiv(C, BLOCK_C)", "B * S", "1"),
            arguments=(
                "query", "keys", "weights", "past_lengths", "scores", "S", "H", "D", "C", "scale",
            ),
            aligned=("D",),
            constants={"BLOCK_H": Pick("H", (16, 32, 64)), "BLOCK_D": Pick("D", (16, 64, 128))},
            configs={
                "*": {"BLOCK_C": 64, "num_warps": 4, "num_stages": 1},
                # Float32 products run on the general units, from registers.
                "*/float32": {"BLOCK_C": 32, "num_warps": 8, "num_stages": 1},
            },
        ),
        Launch(
            "select_positions",
            grid=("B * S", "1", "1"),
            arguments=("past_lengths", "scores", "indices", "S", "C", "K"),
            configs={"*": {"BLOCK_C": 2048, "num_warps": 8, "num_stages": 1}},
        ),
    ),
    workspace=(Buffer("scores", "float32", "B * S * C"),),
    limits=(
        ("H <= 64", "at most 64 indexer heads"),
        ("D <= 128", "indexer heads of at most 128"),
        ("B * S <= 65535", "at most 65535 tokens a pass"),
        ("index_topk >= 1", "at least one position to select"),
    ),
)  # fmt: skip
