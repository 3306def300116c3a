"""JSON as both runtimes read it: what one refuses, so does the other.

Python's `json` takes more than the standard (RFC 8259) and other parsers do: NaN, numbers of any
length, names given twice, halves of surrogate pairs, any depth up to the interpreter's own limit.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 64


class RepeatedName(ValueError):
    """An object that has a name twice; `name` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: listed twice")
        self.name = name


def parse_json(data: bytes) -> Any:
    """The value of UTF-8 text.

    Raises
    ------
    RepeatedName
        If an object has a name twice.
    ValueError
        If it is not JSON; for NaN and infinities, integers beyond 64 bits with a sign, numbers that
        float64 cannot hold, text that is not Unicode, and more than `MAX_DEPTH` levels.
    """
    text = data.decode("utf-8")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite,
            parse_constant=_no_constant,
        )  # fmt: skip
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels") from None
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses half a surrogate pair
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise RepeatedName(name)
        seen[name] = value
    return seen


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError(f"integer beyond 64 bits: {digits[:24]}")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"number beyond float64: {digits[:24]}")
    return number


def _no_constant(name: str) -> float:
    raise ValueError(f"not a number of JSON: {name}")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [x for x in level if isinstance(x, dict | list)]:
        depth += 1
        level = [x for y in level for x in (y.values() if isinstance(y, dict) else y)]
    return depth
