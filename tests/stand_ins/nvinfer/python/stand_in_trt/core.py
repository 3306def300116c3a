"""The library under the Python modules: `exports.cpp`."""

from __future__ import annotations

import ctypes
from typing import Any

P, I32, I64, S, SIZE = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p,
                        ctypes.c_size_t)  # fmt: skip
SIZES = ctypes.POINTER(ctypes.c_int64)
FUNCTIONS = {
    "standInLogger": (P, I32),
    "standInRuntime": (P, P),
    "standInRuntimeRegistry": (P, P),
    "standInDeleteRuntime": (None, P),
    "standInBuilder": (P, P),
    "standInBuilderRegistry": (P, P),
    "standInDeleteBuilder": (None, P),
    "standInLoadLibrary": (P, P, S),
    "standInCreators": (I32, P, S, SIZE),
    "standInBuildPlugin": (I32, P, S, S, SIZE),
    "standInEngine": (P, P, S, SIZE),
    "standInDeleteEngine": (None, P),
    "standInTensors": (I32, P),
    "standInTensorName": (S, P, I32),
    "standInTensorMode": (I32, P, S),
    "standInTensorType": (I32, P, S),
    "standInTensorShape": (I32, P, S, I32, I32, SIZES),
    "standInProfiles": (I32, P),
    "standInScratch": (I64, P, I32),
    "standInContext": (P, P, I32, I32),
    "standInDeleteContext": (None, P),
    "standInSetProfile": (I32, P, I32, P),
    "standInGetProfile": (I32, P),
    "standInSetShape": (I32, P, S, I32, SIZES),
    "standInGetShape": (I32, P, S, SIZES),
    "standInSetAddress": (I32, P, S, P),
    "standInGetAddress": (P, P, S),
    "standInSetScratch": (None, P, P, I64),
    "standInEnqueue": (I32, P, P),
}


def load(name: str) -> Any:
    """The library of that name, each of its functions with its types."""
    library = ctypes.CDLL(name)
    for function, (result, *arguments) in FUNCTIONS.items():
        found = getattr(library, function)
        found.restype, found.argtypes = result, arguments
    return library


def shape_of(ask: Any) -> tuple[int, ...]:
    """The sizes that a function fills in; () of what there is not."""
    sizes = (ctypes.c_int64 * 8)()
    return tuple(sizes[: max(ask(sizes), 0)])
