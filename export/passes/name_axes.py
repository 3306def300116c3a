"""Axes by the names of what they count, in place of the exporter's symbols."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import onnx

SELECTED = re.compile(r"Min\(\d+, (\w+)\)")


def name_axes(model: onnx.ModelProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Name every open axis of the graph's inputs, outputs and inner values.

    1. An axis of an input, or one with the same symbol elsewhere, gets the name that `axes` gives.
    2. The product of `batch` and `sequence` is `tokens`; n times that is `tokens_times_n`.
    3. The smaller of a number and `capacity` is `selected`.
    4. Any other expression on an inner value is left out: the axis stays open, without a name.

    Parameters
    ----------
    axes : input name → number of an open axis → its name.

    Raises
    ------
    ValueError
        If two names came to share a symbol, or an output has an axis of case 4.
    """
    inputs = {value.name: _dims(value) for value in model.graph.input}
    names: dict[str, str] = {}
    for value, of in axes.items():
        for number, name in of.items():
            symbol = inputs[value][number].dim_param
            if names.setdefault(symbol, name) != name:
                raise ValueError(f"input {value}: axes {names[symbol]} and {name} became one")
    for outer in (*model.graph.input, *model.graph.output):
        for dim in _open(outer):
            found = _name(dim.dim_param, names)
            if found is None:
                raise ValueError(f"{outer.name}: no name for an axis of size {dim.dim_param}")
            dim.dim_param = found
    for inner in model.graph.value_info:
        for dim in _open(inner):
            found = _name(dim.dim_param, names)
            if found is None:
                dim.Clear()
            else:
                dim.dim_param = found


def _name(expression: str, names: Mapping[str, str]) -> str | None:
    if expression in names:
        return names[expression]
    if (smaller := SELECTED.fullmatch(expression)) and names.get(smaller[1]) == "capacity":
        return "selected"
    factors = expression.split("*")
    count = math.prod(int(factor) for factor in factors if factor.isdecimal())
    symbols = sorted(names.get(factor, "") for factor in factors if not factor.isdecimal())
    if symbols != ["batch", "sequence"]:
        return None
    return "tokens" if count == 1 else f"tokens_times_{count}"


def _dims(
    value: onnx.ValueInfoProto,
) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _open(value: onnx.ValueInfoProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    return (dim for dim in _dims(value) if dim.dim_param)
