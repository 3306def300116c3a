"""What an NVFP4 linear layer launches: rows for few tokens, tiles for more."""

from __future__ import annotations

from glm_trt.plugins.common.launch import Launch, Launches
from glm_trt.plugins.common.quantized_launches import FEW, linear_tiles
from glm_trt.plugins.nvfp4_linear.contract import CONTRACT

POINTERS = ("x", "weight", "scale", "global_scale", "y")
UNIT = 32  # inputs: 16 bytes

LAUNCHES = Launches(
    CONTRACT,
    steps=(
        Launch(
            "nvfp4_linear_rows",
            when=f"T <= {FEW}",
            # Tokens first: what one reads of the weight the next finds in cache.
            grid=("T", "cdiv(out_features, BLOCK_N)", "1"),
            arguments=(*POINTERS, "out_features", f"in_features // {UNIT}"),
            configs={
                "*": {"UNIT": UNIT, "BLOCK_N": 4, "BLOCK_K": 2048, "num_warps": 4, "num_stages": 2}
            },
        ),
        *linear_tiles("nvfp4_linear_tiles", f"T > {FEW}", UNIT, POINTERS, e4m3=False),
    ),
    limits=((f"in_features % {UNIT} == 0", f"inputs in multiples of {UNIT}"),),
)
