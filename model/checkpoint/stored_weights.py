"""Matrices that are stored narrow, dequantised in NumPy: for runtimes, which need no PyTorch."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from glm_trt.model.quantization import FP8_BLOCK, NVFP4_GROUP

_BYTES = np.arange(256, dtype=np.uint8)
E4M3_OF_BYTE = _BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
# Two to a byte, the first in its low bits.
E2M1_OF_BYTE = np.stack(
    [half.view(ml_dtypes.float4_e2m1fn).astype(np.float32) for half in (_BYTES & 15, _BYTES >> 4)],
    axis=-1,
)


def dequantize(codes: NDArray[Any], scale: NDArray[Any], *rest: NDArray[Any]) -> NDArray[Any]:
    """The matrix [out, in] in float32 whose stored parts these are (`Quantization.parts`).

    Parameters
    ----------
    codes : e4m3 [out, in], or uint8 [out, in/2].
    scale : of a float dtype, [⌈out/128⌉, ⌈in/128⌉] or one number; or e4m3 [out, in/16].
    rest : of the latter, the global scale, one number.
    """
    rows = codes.shape[0]
    if not rest:
        scale = scale.astype(np.float32)
        if scale.size == 1:
            scaled: NDArray[Any] = E4M3_OF_BYTE[codes.view(np.uint8)] * scale.reshape(())
            return scaled
        wide = scale.repeat(FP8_BLOCK[1], 1)[:, : codes.shape[1]]
        return E4M3_OF_BYTE[codes.view(np.uint8)] * wide.repeat(FP8_BLOCK[0], 0)[:rows]
    values = E2M1_OF_BYTE[codes].reshape(rows, -1)
    scales = E4M3_OF_BYTE[scale.view(np.uint8)].repeat(NVFP4_GROUP, 1)
    product: NDArray[Any] = values * scales * rest[0].reshape(())
    return product
