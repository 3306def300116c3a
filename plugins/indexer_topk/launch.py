"""What the indexer top-k launches: scores of all visible positions, then the selection."""

from __future__ import annotations

from glm_trt.plugins.common.launch import Buffer, Launch, Launches, Pick
from glm_trt.plugins.indexer_topk.contract import CONTRACT

# Few queries over many positions: each query's selection is shared by up to 32 programs.
MOST_CHUNKS = 32
CHUNKS = f"max(1, min({MOST_CHUNKS}, cdiv(C, 2048), 256 // max(1, B * S)))"
# Chunks of all queries, at most: where a query has several there are no more than 256. More queries
# have fewer each, so this does not shrink where a size grows.
ALL_CHUNKS = f"(C > 2048) * min(B * S * min({MOST_CHUNKS}, cdiv(C, 2048)), 256)"
DECODE = {"BLOCK_C": 64, "QUERIES": 1, "num_warps": 8, "num_stages": 1}
# Four queries of 32 heads are the rows of one tile, and share the keys they read.
PREFILL = {"BLOCK_C": 128, "QUERIES": 4, "num_warps": 8, "num_stages": 1}
# Float32 products run on the general units, from registers.
FLOAT32 = {"BLOCK_C": 16, "QUERIES": 1, "num_warps": 8, "num_stages": 1}
SELECT = {"BLOCK_C": 1024, "CHUNKS": MOST_CHUNKS, "num_warps": 8, "num_stages": 1}


def _score(when: str, config: dict[str, int]) -> Launch:
    return Launch(
        "score_positions",
        when=when,
        grid=("cdiv(C, BLOCK_C)", "B * cdiv(S, QUERIES)", "1"),
        arguments=(
            "query", "keys", "weights", "past_lengths", "scores", "S", "H", "D", "C", "scale",
        ),
        aligned=("D",),
        constants={"BLOCK_H": Pick("H", (32, 64)), "BLOCK_D": Pick("D", (64, 128))},
        configs={"*": config, "*/float32": FLOAT32},
    )  # fmt: skip


def _count(number: int) -> Launch:
    return Launch(
        "count_chunk",
        when=f"{CHUNKS} > 1",
        grid=(CHUNKS, "B * S", "1"),
        arguments=("past_lengths", "scores", "counts", "found", "S", "C", "K", CHUNKS),
        configs={"*": SELECT | {"PASS": number}},
    )


LAUNCHES = Launches(
    CONTRACT,
    steps=(
        _score("S < 4", DECODE),
        _score("S >= 4", PREFILL),
        *(_count(number) for number in range(4)),
        Launch(
            "select_chunk",
            when=f"{CHUNKS} > 1",
            grid=(CHUNKS, "B * S", "1"),
            arguments=(
                "past_lengths", "scores", "counts", "found", "indices", "S", "C", "K", CHUNKS,
            ),
            configs={"*": SELECT},
        ),
        Launch(
            "select_positions",
            when=f"{CHUNKS} == 1",
            grid=("B * S", "1", "1"),
            arguments=("past_lengths", "scores", "indices", "S", "C", "K"),
            configs={"*": {"BLOCK_C": 4096, "num_warps": 8, "num_stages": 1}},
        ),
    ),
    workspace=(
        Buffer("scores", "float32", "B * S * C"),
        Buffer("counts", "int32", f"{ALL_CHUNKS} * 4 * 256"),
        Buffer("found", "int32", f"{ALL_CHUNKS} * 4 * 3"),
    ),
    limits=(
        ("H <= 64", "at most 64 indexer heads"),
        ("D <= 128", "indexer heads of at most 128"),
        ("B * S <= 65535", "at most 65535 tokens a pass"),
        ("index_topk >= 1", "at least one position to select"),
    ),
)  # fmt: skip
