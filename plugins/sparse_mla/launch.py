"""What sparse MLA launches: heads of a token in blocks, few tokens split over their selection."""

from __future__ import annotations

from glm_trt.plugins.common.launch import Buffer, Launch, Launches, Pick
from glm_trt.plugins.sparse_mla.contract import CONTRACT

# From 16 tokens of 64 heads on, programs of 64 heads fill a GPU, and read each entry once.
WIDE = "H > 32 and B * S * cdiv(H, 64) >= 16"
# The selection is split until there are about 128 programs (the SMs of a large GPU), each with 64
# entries or more. All of it follows from sizes, so no result depends on the number of SMs.
MOST_SPLITS = 32
SPLITS = (
    f"max(1, min({MOST_SPLITS}, cdiv(K, 64), "
    f"128 // max(1, B * S * (({WIDE}) * cdiv(H, 64) + (not ({WIDE})) * cdiv(H, 32)))))"
)
# Rows (a head of a token) of all splits, at most: where the selection is split there are no more
# than 128 programs of 64. More tokens are split less, so this does not shrink where a size grows.
SPLIT_ROWS = f"(K > 64) * min(B * S * H * min({MOST_SPLITS}, cdiv(K, 64)), 128 * 64)"
# Models have 512 and 64; what is smaller is a test.
RANKS = (64, 512)
# A program's heads of 1.1 KB and its stages of entries, 1.1 KB each, share an SM's shared memory;
# its sums take 2 KB a head of the registers. Five stages: the pipeline spends some of them on the
# indices, and two are left for the entries.
SMALL = {"BLOCK_H": 32, "BLOCK_K": 16, "num_warps": 8, "num_stages": 5}
MEDIUM = {"BLOCK_H": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 5}
# As timed on an H100 (docs/measurements.md): the products of 64 entries fill its tensor cores.
LARGE = {"BLOCK_H": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}
HOPPER = {"BLOCK_H": 32, "BLOCK_K": 64, "num_warps": 8, "num_stages": 5}
# Float32 runs on the general units; 16 entries of 512 are what a small GPU's shared memory holds.
FLOAT32 = {"BLOCK_H": 16, "BLOCK_K": 16, "num_warps": 8, "num_stages": 1}
COMBINE = {"BLOCK_S": 16, "MOST_SPLITS": MOST_SPLITS, "num_warps": 8, "num_stages": 1}


def _configs(**targets: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"*": SMALL, "*/float32": FLOAT32} | {
        f"{target}/{dtype}": config
        for target, config in targets.items()
        for dtype in ("float16", "bfloat16")
    }


# Not sm80: sm86 runs its kernels, and has 99 KB of shared memory, of which MEDIUM takes 111.
NARROW_CONFIGS = _configs(sm90=HOPPER, sm100=MEDIUM)
# 64 heads fit the registers only where the tensor cores read both operands from shared memory.
WIDE_CONFIGS = _configs(sm90=LARGE, sm100=MEDIUM)


def _attend(when: str, configs: dict[str, dict[str, int]]) -> Launch:
    return Launch(
        "attend_selected",
        when=when,
        grid=("cdiv(H, BLOCK_H)", "B * S", SPLITS),
        arguments=(
            "query", "cache", "indices", "latent", "parts", "stats", "S", "H", "D", "value_width",
            "C", "K", SPLITS, "scale",
        ),
        aligned=("D", "value_width"),
        constants={
            "BLOCK_R": Pick("value_width", RANKS),
            "BLOCK_P": Pick("D - value_width", (64,)),
        },
        configs=configs,
    )  # fmt: skip


LAUNCHES = Launches(
    CONTRACT,
    steps=(
        _attend(WIDE, WIDE_CONFIGS),
        _attend(f"not ({WIDE})", NARROW_CONFIGS),
        Launch(
            "combine_splits",
            when=f"{SPLITS} > 1",
            grid=("H", "B * S", "1"),
            arguments=("parts", "stats", "latent", "H", "value_width", SPLITS),
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
        ("B * S <= 65535", "at most 65535 tokens a pass"),
    ),
)
