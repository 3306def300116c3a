"""Measured numbers as JSON and back, each the same bit for bit: dataclasses by their own types."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np


def pack(value: Any) -> Any:
    """JSON of dataclasses, named tuples, enums, containers, arrays and numbers. A dictionary whose
    keys are not all strings becomes a list of pairs. Values that are not finite stay so: Python's
    json writes and reads them.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: pack(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: pack(x) for key, x in value.items()}
        return [[pack(key), pack(x)] for key, x in value.items()]
    if isinstance(value, list | tuple):
        return [pack(x) for x in value]
    return value


def unpack(kind: Any, value: Any) -> Any:
    """What `pack` was given, of type `kind`. Raises `ValueError`, `TypeError` for anything else."""
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = [of for of in arguments if of is not type(None)]
        return None if value is None else unpack(inner[0], value)
    if origin is np.ndarray:
        (dtype,) = get_args(arguments[1])
        return np.array(value, None if dtype is Any else dtype)
    if origin is dict:
        pairs = value.items() if arguments[0] is str else value
        return {unpack(arguments[0], key): unpack(arguments[1], x) for key, x in pairs}
    if origin is list:
        return [unpack(arguments[0], x) for x in value]
    if origin is tuple:
        of = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(unpack(a, x) for a, x in zip(of, value, strict=True))
    return _unpack_plain(kind, value)


def _unpack_plain(kind: Callable[..., Any], value: Any) -> Any:
    if is_dataclass(kind):
        names, hints = [field.name for field in fields(kind)], get_type_hints(kind)
        if set(names) != set(value):
            raise ValueError(f"expected {', '.join(names)}, found {', '.join(value)}")
        return kind(**{name: unpack(hints[name], value[name]) for name in names})
    if hasattr(kind, "_fields"):  # a named tuple
        hints = get_type_hints(kind)
        return kind(*(unpack(hints[n], x) for n, x in zip(kind._fields, value, strict=True)))
    if kind is float and type(value) is int:
        return value  # a sum that nothing was added to, say
    if kind in (int, float, bool, str) and type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {value!r}")
    return kind(value)
