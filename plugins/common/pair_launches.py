"""The launches of `pairs.py`, for MoE experts.

A pair is a token and one of its k experts; a tile is some of one expert's pairs.
"""

from __future__ import annotations

from glm_trt.plugins.common.contract import ACTIVATION
from glm_trt.plugins.common.launch import Buffer, Launch, Pick

_CONFIG = {"BLOCK_P": 1024, "num_warps": 4, "num_stages": 2}


def pair_buffers(few_tokens: str, inner: str = "I") -> tuple[Buffer, ...]:
    """What sorted pairs need, for experts of width `inner`; or pairs of few tokens, in its place.

    `few_tokens` is how many tokens may go by pairs that are not sorted.
    """
    return (
        Buffer("counts", "int32", "(T > 16) * E"),
        Buffer("sorted", "int32", "(T > 16) * T * k"),
        Buffer("tiles", "int32", "(T > 16) * min(T * k, T * k // 16 + E) * 3"),
        Buffer("inner", ACTIVATION, f"(T > 16) * T * k * {inner}"),
        Buffer("parts", ACTIVATION, "(T > 16) * T * k * hidden"),
        Buffer("inner_few", "float32", f"{few_tokens} * k * {inner}", over="counts"),
    )


def most_tiles(rows: str) -> str:
    """As many tiles of `rows` pairs as there can be: each expert has at most one not full."""
    return f"min(T * k, T * k // ({rows}) + E)"


def sorting(when: str, rows: str) -> tuple[Launch, ...]:
    """Sort pairs by expert, into tiles of at most `rows` (at least 16)."""
    return (
        Launch(
            "count_pairs",
            when=when,
            grid=("E", "1", "1"),
            arguments=("indices", "counts", "T * k"),
            configs={"*": _CONFIG},
        ),
        Launch(
            "sort_pairs",
            when=when,
            grid=("E", "1", "1"),
            arguments=(
                "indices",
                "counts",
                "sorted",
                "tiles",
                "T * k",
                "E",
                most_tiles(rows),
                rows,
            ),
            constants={"BLOCK_E": Pick("E", (512,))},
            configs={"*": _CONFIG},
        ),
    )


def summing(when: str) -> Launch:
    """Sum each token's weighted parts in the order of its slots."""
    return Launch(
        "sum_slots",
        when=when,
        grid=("T", "cdiv(hidden, BLOCK_H)", "1"),
        arguments=("parts", "y", "k", "hidden"),
        aligned=("hidden",),
        configs={"*": {"BLOCK_H": 1024, "num_warps": 4, "num_stages": 2}},
    )
