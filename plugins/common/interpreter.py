"""Triton's interpreter, made to round as GPUs do, and quicker."""

from __future__ import annotations

import inspect
from typing import Any

import ml_dtypes
import numpy as np


def prepare_interpreter() -> None:
    """What every run of a kernel under the interpreter wants; once, or again."""
    round_to_nearest()
    look_up_once()


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


def look_up_once() -> None:
    """Let the interpreter keep what it looks up anew each time (Triton 3.7.1), and finds the same:
    the built-in functions of its language, which it lists whenever a kernel calls a function, and
    which dtype of NumPy one of its own is. It is a third of a kernel's time.
    """
    from triton import language
    from triton.runtime import interpreter

    if getattr(interpreter._patch_builtin, "keeps", False):
        return
    built_in: dict[Any, list[tuple[str, Any]]] = {}
    dtypes: dict[str, Any] = {}
    dtype_of = interpreter._get_np_dtype

    def patch(package: Any, builder: Any, scope: Any) -> None:
        if package not in built_in:
            found = inspect.getmembers(package)
            built_in[package] = [x for x in found if language.core.is_builtin(x[1])]
        for name, member in built_in[package]:
            if getattr(package, name) is member:  # and no kernel that runs has put its own there
                interpreter._patch_attr(package, name, member, builder, scope)

    def known_dtype(of: Any) -> Any:
        element = of.element_ty if isinstance(of, language.block_type) else of
        if element.name not in dtypes:
            dtypes[element.name] = dtype_of(element)
        return dtypes[element.name]

    patch.keeps = True  # type: ignore[attr-defined]
    interpreter._patch_builtin = patch
    interpreter._get_np_dtype = known_dtype
