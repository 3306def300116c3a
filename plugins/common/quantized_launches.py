"""What the plans of quantised operators share: tiles by the number of tokens, e4m3 by target."""

from __future__ import annotations

from collections.abc import Mapping

from glm_trt.plugins.common.launch import Launch

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
_FLOAT32 = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2}
_TOKENS = ("T <= 16", "T > 16 and T <= 512", "T > 512")


def decoding_e4m3(configs: Mapping[str, Config]) -> dict[str, Config]:
    """`configs`, of "*", "*/DTYPE" and sm80, with who decodes e4m3: the hardware, but on sm80."""
    both = {key.replace("*", "sm80"): of for key, of in configs.items()} | dict(configs)
    return {key: of | {"HARDWARE": int("sm80" not in key)} for key, of in both.items()}


def linear_tiles(
    kernel: str, when: str, unit: int, arguments: tuple[str, ...], e4m3: bool
) -> list[Launch]:
    """The tiles of a linear layer whose rows are multiples of `unit`, for each number of tokens."""
    launches = []
    for tokens, tile in zip(_TOKENS, _TILES, strict=True):
        configs = {"*": tile | {"UNIT": unit}, "*/float32": _FLOAT32 | {"UNIT": unit}}
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
