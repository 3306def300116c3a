"""What the launches of quantised operators share: tiles by the number of tokens, e4m3 by target."""

from __future__ import annotations

from collections.abc import Mapping

from glm_trt.plugins.common.contract import Contract
from glm_trt.plugins.common.launch import Launch, Launches, on_hopper
from glm_trt.plugins.common.pair_launches import most_tiles, pair_buffers, sorting, summing

Config = dict[str, int]

# Tokens for which rows alone are read: from there on tensor cores share what is decoded.
FEW = 4
# Tokens of a tile, its outputs, and the depth of one product; sums fit the registers of mma.sync.
_TILES = (
    {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4},
    {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 3},
    {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
)
# Products in float32 run on the general units, whatever the tile.
_FLOAT32 = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
# Pairs of a tile of experts, by those that an expert has on average: as for MoeExperts.
PAIR_ROWS = "(16 + (ITEMSIZE == 2) * (48 * (T * k > 8 * E) + 64 * (T * k > 32 * E)))"
_PAIR_TILES = {
    16: _TILES[0] | {"BLOCK_K": 64},
    64: {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4},
    128: {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
}
# What is otherwise on sm90, by kernel and tokens of a tile, as timed on an H100.
_HOPPER: dict[str, dict[int, Config]] = {
    "fp8_linear_tiles": {16: {"num_stages": 5}, 64: {"num_stages": 5}, 128: {"BLOCK_K": 128}},
    "nvfp4_linear_tiles": {
        16: {"BLOCK_K": 256, "num_warps": 2, "num_stages": 3},
        64: {"BLOCK_K": 256},
        128: {"BLOCK_M": 256},
    },
    "fp8_gate_up_tiles": {16: {"BLOCK_K": 128}},
    "fp8_down_tiles": {
        16: {"BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 2},
        128: {"num_warps": 4},
    },
    "nvfp4_gate_up_tiles": {16: {"num_warps": 2}, 128: {"num_warps": 4}},
    "nvfp4_down_tiles": {
        16: {"BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 2},
        128: {"num_warps": 4},
    },
}
_TOKENS = ("T <= 16", "T > 16 and T <= 512", "T > 512")


def decoding_e4m3(configs: Mapping[str, Config]) -> dict[str, Config]:
    """`configs`, of "*", "*/DTYPE" and sm80, with who decodes e4m3: the hardware, but on sm80."""
    both = {key.replace("*", "sm80"): of for key, of in configs.items()} | dict(configs)
    return {key: of | {"HARDWARE": int("sm80" not in key)} for key, of in both.items()}


def _by_target(kernel: str, tile: Config, unit: int) -> dict[str, Config]:
    """The configurations of a kernel whose rows are multiples of `unit`, for a tile."""
    all_of = {"UNIT": unit}
    hopper = _HOPPER.get(kernel, {}).get(tile["BLOCK_M"], {})
    configs = {"*": tile | all_of, "*/float32": _FLOAT32 | all_of}
    return configs | on_hopper(tile | all_of | hopper)


def linear_tiles(
    kernel: str, when: str, unit: int, arguments: tuple[str, ...], e4m3: bool
) -> list[Launch]:
    """The tiles of a linear layer whose rows are multiples of `unit`, for each number of tokens."""
    launches = []
    for tokens, tile in zip(_TOKENS, _TILES, strict=True):
        configs = _by_target(kernel, tile, unit)
        if e4m3:
            # Decoding without hardware takes registers that 128 tokens have not left.
            old = configs["*"] | {"BLOCK_M": min(tile["BLOCK_M"], 64)}
            configs = decoding_e4m3(configs | {"sm80": old})
        launches.append(
            Launch(
                kernel,
                when=f"{when} and {tokens}",
                # Outputs first: programs that run side by side then share tokens in cache.
                grid=("cdiv(out_features, BLOCK_N)", "cdiv(T, BLOCK_M)", "1"),
                arguments=(*arguments, "T", "out_features", f"in_features // {unit}"),
                configs=configs,
            )
        )
    return launches


def experts_launches(
    contract: Contract,
    name: str,
    gate_up: tuple[str, ...],
    down: tuple[str, ...],
    inner: str,
    unit: int,
    odd: str,
    e4m3: bool,
    limits: tuple[tuple[str, str], ...],
) -> Launches:
    """The launches of MoE experts: by pairs for up to 16 tokens, by tiles of sorted pairs above.

    Parameters
    ----------
    name : what the names of the kernels begin with.
    gate_up, down : the ports of their weights, in the kernels' order.
    inner : the experts' width I, an expression.
    unit : elements that rows are multiples of in tiles.
    odd : whether rows are not multiples of `unit`, an expression: such go by pairs alone; "0" where
        a limit refuses them, and pairs too count in units.
    e4m3 : whether kernels choose who decodes e4m3.
    """
    few, many = f"(T <= 16 or {odd})", f"not (T <= 16 or {odd})"
    units = (f"hidden // {unit}", f"{inner} // {unit}")
    by_elements = odd != "0"
    sizes = ("hidden", inner) if by_elements else units
    pairs = {"BLOCK_N": 4, "BLOCK_K": 1024, "num_warps": 4, "num_stages": 2}
    pairs |= {} if by_elements else {"UNIT": unit}

    def configured(configs: dict[str, Config]) -> dict[str, Config]:
        return decoding_e4m3(configs) if e4m3 else configs

    def by_pairs(kernel: str, grid: tuple[str, str, str], arguments: tuple[str, ...]) -> Launch:
        return Launch(
            f"{name}_{kernel}",
            when=few,
            grid=grid,
            arguments=(*arguments, "k", *sizes),
            aligned=sizes if by_elements else (),
            configs=configured({"*": pairs}),
        )

    def tiles(kernel: str, columns: str, arguments: tuple[str, ...]) -> list[Launch]:
        return [
            Launch(
                f"{name}_{kernel}",
                when=f"{many} and {PAIR_ROWS} == {rows}",
                # Columns first: programs that run side by side then share pairs in cache.
                grid=(f"cdiv({columns}, BLOCK_N)", most_tiles(PAIR_ROWS), "1"),
                arguments=(*arguments, *units),
                configs=configured(_by_target(f"{name}_{kernel}", tile, unit)),
            )
            for rows, tile in _PAIR_TILES.items()
        ]

    return Launches(
        contract,
        steps=(
            by_pairs(
                "gate_up_pairs",
                ("T * k", f"cdiv({inner}, BLOCK_N)", "1"),
                ("x", "indices", *gate_up, "inner_few"),
            ),
            by_pairs(
                "down_tokens",
                ("T", "cdiv(hidden, BLOCK_N)", "1"),
                ("inner_few", "indices", "weights", *down, "y"),
            ),
            *sorting(many, PAIR_ROWS),
            *tiles("gate_up_tiles", inner, ("x", *gate_up, "sorted", "tiles", "inner", "k")),
            *tiles("down_tiles", "hidden", ("inner", *down, "weights", "sorted", "tiles", "parts")),
            summing(many),
        ),
        # However many tokens there are, those of odd sizes go by pairs.
        workspace=pair_buffers("T" if by_elements else "min(T, 16)", inner),
        limits=(("E <= 512", "at most 512 experts"), *limits),
    )
