"""Triton's interpreter, made to round as GPUs do."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


def round_to_nearest() -> None:
    """Let the interpreter round float32 to the nearest bfloat16, ties to even, as `cvt.rn` does.

    By itself (Triton 3.7.1) it cuts the digits off, which doubles the error of each rounding: a
    right kernel would look worse than its dtype.
    """
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    convert = interpreter._convert_float
    if getattr(convert, "rounds", False):
        return

    def rounding(source: Any, of: Any, to: Any, mode: Any) -> Any:
        if of == float32 and to == bfloat16:
            return source.view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
        return convert(source, of, to, mode)

    rounding.rounds = True  # type: ignore[attr-defined]
    interpreter._convert_float = rounding
