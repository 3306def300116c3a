"""What MoE experts launch: by pairs for up to 16 tokens, by tiles of sorted pairs above."""

from __future__ import annotations

from glm_trt.plugins.common.contract import ACTIVATION
from glm_trt.plugins.common.launch import Buffer, Launch, Pick, Plan
from glm_trt.plugins.moe_experts import CONTRACT

FEW, MANY = "T <= 16", "T > 16"
# More tiles than there can be: each expert has at most one that is not full.
TILES = "cdiv(T * k, BLOCK_M) + E"
TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3}
# Float32 operands are twice as large, and its products run on the general units.
TILE_FLOAT32 = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}

PLAN = Plan(
    CONTRACT,
    launches=(
        Launch(
            "gate_up_pairs",
            when=FEW,
            grid=("T * k", "cdiv(I, BLOCK_I)", "1"),
            arguments=("x", "indices", "gate_up", "inner_few", "k", "hidden", "I"),
            aligned=("hidden", "I"),
            configs={"*": {"BLOCK_I": 8, "BLOCK_H": 512, "num_warps": 4, "num_stages": 2}},
        ),
        Launch(
            "down_tokens",
            when=FEW,
            grid=("T", "cdiv(hidden, BLOCK_H)", "1"),
            arguments=("inner_few", "indices", "weights", "down", "y", "k", "hidden", "I"),
            aligned=("hidden", "I"),
            configs={"*": {"BLOCK_H": 16, "BLOCK_I": 512, "num_warps": 4, "num_stages": 2}},
        ),
        Launch(
            "count_pairs",
            when=MANY,
            grid=("E", "1", "1"),
            arguments=("indices", "counts", "T * k"),
            configs={"*": {"BLOCK_P": 1024, "num_warps": 4, "num_stages": 2}},
        ),
        Launch(
            "sort_pairs",
            when=MANY,
            grid=("E", "1", "1"),
            arguments=("indices", "counts", "sorted", "tiles", "T * k", "E", TILES),
            constants={"BLOCK_E": Pick("E", (16, 64, 256, 512))},
            configs={"*": {"BLOCK_P": 1024, "BLOCK_M": 64, "num_warps": 4, "num_stages": 2}},
        ),
        Launch(
            "gate_up_tiles",
            when=MANY,
            # Columns first: programs that run side by side then share an expert's rows in cache.
            grid=("cdiv(I, BLOCK_N)", TILES, "1"),
            arguments=("x", "gate_up", "sorted", "tiles", "inner", "k", "hidden", "I"),
            aligned=("hidden", "I"),
            configs={"*": TILE | {"BLOCK_H": 64}, "*/float32": TILE_FLOAT32 | {"BLOCK_H": 32}},
        ),
        Launch(
            "down_tiles",
            when=MANY,
            grid=("cdiv(hidden, BLOCK_N)", TILES, "1"),
            arguments=("inner", "down", "weights", "sorted", "tiles", "parts", "hidden", "I"),
            aligned=("hidden", "I"),
            configs={"*": TILE | {"BLOCK_I": 64}, "*/float32": TILE_FLOAT32 | {"BLOCK_I": 32}},
        ),
        Launch(
            "sum_slots",
            when=MANY,
            grid=("T", "cdiv(hidden, BLOCK_H)", "1"),
            arguments=("parts", "y", "k", "hidden"),
            aligned=("hidden",),
            configs={"*": {"BLOCK_H": 1024, "num_warps": 4, "num_stages": 2}},
        ),
    ),
    workspace=(
        Buffer("inner_few", "float32", "(T <= 16) * T * k * I"),
        Buffer("counts", "int32", "(T > 16) * E"),
        Buffer("sorted", "int32", "(T > 16) * T * k"),
        Buffer("tiles", "int32", "(T > 16) * (cdiv(T * k, 64) + E) * 3"),
        Buffer("inner", ACTIVATION, "(T > 16) * T * k * I"),
        Buffer("parts", ACTIVATION, "(T > 16) * T * k * hidden"),
    ),
    limits=(("E <= 512", "at most 512 experts"),),
)
