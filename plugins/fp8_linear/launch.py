"""What an FP8 linear layer launches: rows for few tokens and odd sizes, tiles for the rest."""

from __future__ import annotations

from glm_trt.plugins.common.contract import ACTIVATION
from glm_trt.plugins.common.launch import Buffer, Launch, Launches
from glm_trt.plugins.common.quantized_launches import FEW, decoding_e4m3, linear_tiles
from glm_trt.plugins.fp8_linear.contract import CONTRACT

# Rows that are no multiple of 16 bytes admit no wide load.
MANY = f"T > {FEW} and in_features % 16 == 0"


def _launches(x: str, quantized: int) -> list[Launch]:
    """The products, of x as it is or of what it was quantised to."""
    pointers = (x, "x_scale", "weight", "scale", "y", str(quantized))
    when = f"quantize_activations == {quantized}"
    return [
        Launch(
            "fp8_linear_rows",
            when=f"{when} and not ({MANY})",
            # Tokens first: what one reads of the weight the next finds in cache.
            grid=("T", "cdiv(out_features, BLOCK_N)", "1"),
            arguments=(*pointers, "T", "out_features", "in_features"),
            aligned=("in_features",),
            configs=decoding_e4m3(
                {"*": {"BLOCK_N": 4, "BLOCK_K": 1024, "num_warps": 4, "num_stages": 2}}
            ),
        ),
        *linear_tiles("fp8_linear_tiles", f"{when} and {MANY}", 16, pointers, e4m3=True),
    ]


LAUNCHES = Launches(
    CONTRACT,
    steps=(
        Launch(
            "quantize_tokens",
            when="quantize_activations == 1",
            grid=("T", "cdiv(in_features, 128 * BLOCK_G)", "1"),
            arguments=("x", "x_quantized", "x_scale", "T", "in_features"),
            configs={"*": {"BLOCK_G": 8, "num_warps": 4, "num_stages": 2}},
        ),
        *_launches("x", 0),
        *_launches("x_quantized", 1),
    ),
    workspace=(
        Buffer("x_quantized", ACTIVATION, "quantize_activations * T * in_features"),
        Buffer("x_scale", "float32", "quantize_activations * T * cdiv(in_features, 128)"),
    ),
    limits=(
        ("quantize_activations == 0 or quantize_activations == 1", "quantize_activations 0 or 1"),
    ),
)
