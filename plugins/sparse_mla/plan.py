"""What sparse MLA launches: one program for 16 heads of a token, or several that share the work."""

from __future__ import annotations

from glm_trt.plugins.common.launch import Buffer, Launch, Pick, Plan
from glm_trt.plugins.sparse_mla import CONTRACT

# Few tokens: split the selection until there are about 256 programs, each with 64 entries or more.
SPLITS = "min(cdiv(K, 64), max(1, 256 // max(1, B * S * cdiv(H, 16))))"
ARGUMENTS = (
    "query", "cache", "indices", "latent", "parts", "stats", "S", "H", "D", "value_width", "C",
    "K", SPLITS, "scale",
)  # fmt: skip
RANKS = (32, 64, 128, 256, 512)
CONSTANTS = {
    "BLOCK_R": Pick("value_width", RANKS),
    "BLOCK_P": Pick("D - value_width", (16, 64)),
}
HALF = {"BLOCK_H": 16, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2}
# Float32 entries of 512 fill the shared memory of a small GPU: 16 of them, one stage.
FLOAT32 = {"BLOCK_H": 16, "BLOCK_K": 16, "num_warps": 8, "num_stages": 1}


def _configs(direct: int) -> dict[str, dict[str, int]]:
    return {"*": HALF | {"DIRECT": direct}, "*/float32": FLOAT32 | {"DIRECT": direct}}


PLAN = Plan(
    CONTRACT,
    launches=(
        Launch(
            "attend_selected",
            when=f"{SPLITS} == 1",
            grid=("cdiv(H, 16)", "B * S", "1"),
            arguments=ARGUMENTS,
            aligned=("D", "value_width"),
            constants=CONSTANTS,
            configs=_configs(direct=1),
        ),
        Launch(
            "attend_selected",
            when=f"{SPLITS} > 1",
            grid=("cdiv(H, 16)", "B * S", SPLITS),
            arguments=ARGUMENTS,
            aligned=("D", "value_width"),
            constants=CONSTANTS,
            configs=_configs(direct=0),
        ),
        Launch(
            "combine_splits",
            when=f"{SPLITS} > 1",
            grid=("H", "B * S", "1"),
            arguments=("parts", "stats", "latent", "H", "value_width", SPLITS),
            constants={"BLOCK_R": Pick("value_width", RANKS)},
            configs={"*": {"num_warps": 4, "num_stages": 1}},
        ),
    ),
    workspace=(
        Buffer("parts", "float32", f"({SPLITS} > 1) * B * S * {SPLITS} * H * value_width"),
        Buffer("stats", "float32", f"({SPLITS} > 1) * B * S * {SPLITS} * H * 2"),
    ),
    limits=(
        ("value_width <= 512", "a latent of at most 512"),
        ("D - value_width <= 64", "a rotary part of at most 64"),
        ("D >= value_width", "a value that is part of the entry"),
        ("B * S <= 65535", "at most 65535 tokens a pass"),
    ),
)
