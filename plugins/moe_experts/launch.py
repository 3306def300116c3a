"""What MoE experts launch: by pairs for up to 16 tokens, by tiles of sorted pairs above."""

from __future__ import annotations

from glm_trt.plugins.common.launch import Launch, Launches, Pick
from glm_trt.plugins.common.pair_launches import most_tiles, pair_buffers, sorting, summing
from glm_trt.plugins.moe_experts.contract import CONTRACT

FEW, MANY = "T <= 16", "T > 16"
# Rows that are no multiple of 16 elements admit no wide load: their tiles are small and slow.
EVEN = "hidden % 16 + I % 16 == 0"
# Pairs a tile, by those that an expert has on average: 16 and 64 where it is the weights' bytes
# that take the time, 128 where it is the products.
SMALL, LARGE = "T * k <= 32 * E", "T * k > 32 * E"
SMALL_ROWS = "16 + 48 * (T * k > 8 * E)"
ROWS = f"16 + ({EVEN}) * (48 * (T * k > 8 * E) + 64 * ({LARGE}))"
TILES = most_tiles(ROWS)


def _tiles(
    kernel: str, columns: str, arguments: tuple[str, ...], depth: str, wide: int
) -> list[Launch]:
    """The three forms of a grouped GEMM's kernel: odd sizes, small tiles, large tiles.

    `columns` is the axis that BLOCK_N divides, `depth` the name of the block along the sums, and
    `wide` the columns of a large tile.
    """

    def launch(when: str, constants: dict[str, Pick], configs: dict[str, dict[str, int]]) -> Launch:
        return Launch(
            kernel,
            when=f"{MANY} and {when}",
            # Columns first: programs that run side by side then share an expert's rows in cache.
            grid=(f"cdiv({columns}, BLOCK_N)", TILES, "1"),
            arguments=(*arguments, "hidden // UNIT", "I // UNIT"),
            constants=constants,
            configs=configs,
        )

    odd = {"UNIT": 1, "BLOCK_M": 16, "BLOCK_N": 32, depth: 32, "num_warps": 4, "num_stages": 2}
    small = {"UNIT": 16, "BLOCK_N": 64, depth: 64, "num_warps": 4, "num_stages": 3}
    # The widest sums that fit the registers of mma.sync; wgmma and tcgen05 take twice as many.
    large = small | {"BLOCK_M": 128, "BLOCK_N": wide // 2, "num_warps": 8}
    widest = {"BLOCK_N": wide}
    # Products in float32 run on the general units, from registers.
    slow = {depth: 32, "num_warps": 8, "num_stages": 2}
    slow_large = large | slow | {"BLOCK_N": 64}
    return [
        launch(f"not ({EVEN})", {}, {"*": odd}),
        launch(
            f"{EVEN} and {SMALL}",
            {"BLOCK_M": Pick(SMALL_ROWS, (16, 64))},
            {"*": small, "*/float32": small | slow},
        ),
        launch(
            f"{EVEN} and {LARGE}",
            {},
            {
                "*": large,
                "*/float32": slow_large,
                "sm90": large | widest,
                "sm90/float32": slow_large,
                "sm100": large | widest,
                "sm100/float32": slow_large,
            },
        ),
    ]


LAUNCHES = Launches(
    CONTRACT,
    steps=(
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
        *sorting(MANY, ROWS),
        *_tiles(
            "gate_up_tiles",
            "I",
            ("x", "gate_up", "sorted", "tiles", "inner", "k"),
            depth="BLOCK_H",
            wide=128,  # twice: gate and up
        ),
        *_tiles(
            "down_tiles",
            "hidden",
            ("inner", "down", "weights", "sorted", "tiles", "parts"),
            depth="BLOCK_I",
            wide=256,
        ),
        summing(MANY),
    ),
    workspace=pair_buffers("min(T, 16)"),
    limits=(("E <= 512", "at most 512 experts"),),
)
