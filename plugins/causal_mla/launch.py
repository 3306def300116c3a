"""What causal MLA launches: rows (s, h) in blocks, few of them split over what they see."""

from __future__ import annotations

from glm_trt.plugins.causal_mla.contract import CONTRACT
from glm_trt.plugins.common.launch import Buffer, Launch, Launches, Pick

# What is visible is split until there are about 128 programs of 64 rows (the SMs of a large GPU),
# each with 64 entries or more. The number follows from the capacity, which is known beforehand;
# each program computes its share from the length, and shares of a short one may be empty.
MOST_SPLITS = 128
SPLITS = f"max(1, min({MOST_SPLITS}, cdiv(C, 64), 128 // max(1, B * cdiv(S * H, 64))))"
# Rows of all splits, at most: where what is visible is split there are no more than 128 programs of
# 64. More rows are split less, so this does not shrink where a size grows.
SPLIT_ROWS = f"(C > 64) * min(B * S * H * min({MOST_SPLITS}, cdiv(C, 64)), 128 * 64)"
# Models have 512; what is smaller is a test.
RANKS = (64, 512)
# A program's rows of 1.1 KB and its stages of entries, 1.1 KB each, share an SM's shared memory;
# its sums take 2 KB a row of the registers. 64 rows, a token of 64 heads, read each entry once; on
# sm89 and sm120 they do not fit, on sm100 they spill.
SMALL = {"BLOCK_M": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2}
CONFIGS = {
    # sm86 runs it too, and has 99 KB of shared memory: two stages are 96.
    "sm80": {"BLOCK_M": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2},
    "sm90": {"BLOCK_M": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3},
    "sm100": {"BLOCK_M": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 5},
}
# Float32 runs on the general units; 16 entries of 512 are what a small GPU's shared memory holds.
FLOAT32 = {"BLOCK_M": 16, "BLOCK_K": 16, "num_warps": 8, "num_stages": 1}
COMBINE = {"BLOCK_S": 16, "MOST_SPLITS": MOST_SPLITS, "num_warps": 8, "num_stages": 1}
# Every row of a program is of one token.
UNMIXED = "H % BLOCK_M == 0 or S == 1"


def _attend(when: str, mixed: int) -> Launch:
    configs = {"*": SMALL, "*/float32": FLOAT32} | {
        f"{target}/{dtype}": config
        for target, config in CONFIGS.items()
        for dtype in ("float16", "bfloat16")
    }
    return Launch(
        "attend_causal",
        when=when,
        grid=("cdiv(S * H, BLOCK_M)", SPLITS, "B"),
        arguments=(
            "query", "cache", "past_lengths", "latent", "parts", "stats", "S", "H", "D",
            "value_width", "C", SPLITS, "scale",
        ),
        aligned=("D", "value_width"),
        constants={
            "BLOCK_R": Pick("value_width", RANKS),
            "BLOCK_P": Pick("D - value_width", (64,)),
        },
        configs={key: config | {"MIXED": mixed} for key, config in configs.items()},
    )  # fmt: skip


LAUNCHES = Launches(
    CONTRACT,
    steps=(
        _attend(UNMIXED, 0),
        _attend(f"not ({UNMIXED})", 1),
        Launch(
            "combine_splits",
            when=f"{SPLITS} > 1",
            grid=("S * H", "B", "1"),
            arguments=("parts", "stats", "latent", "S * H", "value_width", SPLITS),
            constants={"BLOCK_R": Pick("value_width", RANKS)},
            configs={"*": COMBINE},
        ),
    ),
    workspace=(
        Buffer("parts", "float32", f"{SPLIT_ROWS} * value_width"),
        Buffer("stats", "float32", f"{SPLIT_ROWS} * 2"),
    ),
    limits=(
        ("value_width <= 512", "a latent of at most 512"),
        ("D - value_width <= 64", "a rotary part of at most 64"),
        ("D >= value_width", "a value that is part of the entry"),
        ("B <= 65535", "at most 65535 sequences"),
        ("S * H <= 1073741824", "at most 2^30 heads of all tokens of a sequence"),
    ),
)
