"""From what a graph says of a node to what its launches may do: names in ranges, constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glm_trt.plugins.common.bounds import UNBOUNDED, Bounds, bounds
from glm_trt.plugins.common.contract import ACTIVATION, ITEMSIZES, STATE, Contract, Types
from glm_trt.plugins.common.launch import SIZE_ALIGNMENT, Launch
from glm_trt.plugins.common.selection import Use


@dataclass(frozen=True)
class PossibleValues:
    """What a launch may pick: whether its sizes are multiples of 16, and each constant's values."""

    aligned: frozenset[bool]
    constants: dict[str, frozenset[int]]


def describe(contract: Contract, use: Use) -> tuple[Types, dict[str, Bounds]]:
    """The types of a use, and the bounds of every name that expressions know.

    Raises ValueError where the use does not fit the contract.
    """
    if len(use.inputs) > len(contract.inputs):
        raise ValueError(f"{use.operator}: {len(use.inputs)} inputs, of {len(contract.inputs)}")
    given = dict(use.attributes)
    integers = contract.integers({name: given.get(name, 0.0) for name in contract.attributes})
    ranges: dict[str, Bounds] = {name: (value, value) for name, value in integers.items()}
    types: dict[str, str] = {}
    inputs = [*use.inputs, *[None] * (len(contract.inputs) - len(use.inputs))]
    for port, of in zip(contract.inputs, inputs, strict=True):
        if port.optional:
            ranges[f"has_{port.name}"] = (int(of is not None),) * 2
        if of is None:
            continue
        if len(of.axes) != len(port.axes):
            raise ValueError(f"{use.operator}: {port.name}: {len(of.axes)} axes")
        types.setdefault(port.dtype, of.dtype)
        for axis, found in zip(port.axes, of.axes, strict=True):
            ranges[axis] = _both(ranges.get(axis, UNBOUNDED), found)
    for axis, expression in contract.derived.items():
        ranges[axis] = _both(ranges.get(axis, UNBOUNDED), bounds(expression, ranges))
    absent = {axis: (0, 0) for port in contract.inputs for axis in port.axes}
    activation = types.get(ACTIVATION, "float32")
    found_types = Types(activation, types.get(STATE, activation))
    size = ITEMSIZES[found_types.activation]
    return found_types, absent | ranges | {"ITEMSIZE": (size, size)}


def possible_values(launch: Launch, ranges: Mapping[str, Bounds]) -> PossibleValues | None:
    """What the launch may pick with names in these ranges; None where it launches nothing."""
    # Conditions and grids may read a configuration, which depends on the target: 1 and more.
    sizes = {name: UNBOUNDED for config in launch.configs.values() for name in config}
    inner = sizes | dict(ranges)
    if bounds(launch.when, inner)[1] == 0:
        return None
    constants = {}
    for name, pick in launch.constants.items():
        low, high = bounds(pick.expression, ranges)
        largest = next((value for value in pick.values if value >= high), pick.values[-1])
        constants[name] = frozenset(v for v in pick.values if low <= v <= largest)
        if not constants[name]:
            return None  # refused at run time
    aligned = {False}
    if launch.aligned:
        of = [bounds(size, ranges) for size in launch.aligned]
        known = all(low == high for low, high in of)
        aligned = {True, False}
        if known:
            aligned = {all(low % SIZE_ALIGNMENT == 0 for low, _ in of)}
        elif any(low == high and low % SIZE_ALIGNMENT for low, high in of):
            aligned = {False}
    return PossibleValues(frozenset(aligned), constants)


def _both(a: Bounds, b: Bounds) -> Bounds:
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low <= high else b
