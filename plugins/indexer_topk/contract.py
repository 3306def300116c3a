"""The contract of the indexer's top-k."""

from __future__ import annotations

from glm_trt.plugins.common.contract import Chooser, Contract, Port

CONTRACT = Contract(
    name="IndexerTopK",
    torch_name="indexer_topk",
    doc="Visible positions with the largest indexer scores, ascending, then -1.",
    inputs=(
        Port("query", ("B", "S", "H", "D")),
        Port("keys", ("B", "1", "C", "D")),
        Port("weights", ("B", "S", "H"), "float32"),
        Port("past_lengths", ("B",), "int64"),
    ),
    outputs=(Port("indices", ("B", "S", "K"), "int32"),),
    attributes={"index_topk": int, "scale": float},
    derived={"K": "min(index_topk, C)"},
    tolerance={"float32": 0.0, "float16": 0.0, "bfloat16": 0.0},
    form=Chooser(output="topk_indices"),
)
