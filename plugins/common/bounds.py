"""What an expression of a launch may be where its sizes are known as ranges only."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

from glm_trt.plugins.common.expressions import cdiv, next_power_of_2, parsed

Bounds = tuple[int, int]  # the smallest and the largest value

# No axis of a tensor is longer, and no index of a kernel is larger.
UNBOUNDED: Bounds = (0, (1 << 31) - 1)

_FUNCTIONS: dict[str, Callable[..., int]] = {
    "cdiv": cdiv,
    "next_power_of_2": next_power_of_2,
    "min": min,
    "max": max,
}


def bounds(expression: str, ranges: Mapping[str, Bounds]) -> Bounds:
    """Bounds of the expression, of which each name may be anything in its range.

    Never too narrow; too wide where a name occurs twice, as each occurrence counts by itself.
    Conditions are (0, 0), (1, 1), or (0, 1) where it depends. Where something may be divided by
    zero, those sizes are left out. Raises KeyError for a name without a range.
    """
    return _bounds(parsed(expression).body, ranges)


def _bounds(node: ast.AST, ranges: Mapping[str, Bounds]) -> Bounds:
    match node:
        case ast.Constant(value=int(value)):
            return int(value), int(value)
        case ast.Name(id=name):
            return ranges[name]
        case ast.BoolOp(op=ast.And(), values=values):
            return _truth([_bounds(value, ranges) for value in values], all)
        case ast.BoolOp(values=values):
            return _truth([_bounds(value, ranges) for value in values], any)
        case ast.UnaryOp(operand=operand):  # `not`: the language has no other
            low, high = _truth([_bounds(operand, ranges)], all)
            return 1 - high, 1 - low
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            return _compared(operator, _bounds(left, ranges), _bounds(right, ranges))
        case ast.BinOp(left=left, op=operator, right=right):
            return _combined(operator, _bounds(left, ranges), _bounds(right, ranges))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            of = [_bounds(argument, ranges) for argument in arguments]
            return _called(name, of)
    raise ValueError(f"not in the language of launches: {ast.unparse(node)}")


def _truth(of: list[Bounds], combine: Callable[[list[bool]], bool]) -> Bounds:
    surely = [low > 0 or high < 0 for low, high in of]
    possibly = [(low, high) != (0, 0) for low, high in of]
    return int(combine(surely)), int(combine(possibly))


def _compared(operator: ast.cmpop, a: Bounds, b: Bounds) -> Bounds:
    match operator:
        case ast.Lt():
            return int(a[1] < b[0]), int(a[0] < b[1])
        case ast.LtE():
            return int(a[1] <= b[0]), int(a[0] <= b[1])
        case ast.Gt():
            return _compared(ast.Lt(), b, a)
        case ast.GtE():
            return _compared(ast.LtE(), b, a)
    same = int(a[0] == a[1] == b[0] == b[1]), int(a[0] <= b[1] and b[0] <= a[1])
    return same if isinstance(operator, ast.Eq) else (1 - same[1], 1 - same[0])


def _combined(operator: ast.operator, a: Bounds, b: Bounds) -> Bounds:
    match operator:
        case ast.Add():
            return a[0] + b[0], a[1] + b[1]
        case ast.Sub():
            return a[0] - b[1], a[1] - b[0]
        case ast.Mult():
            corners = [x * y for x in a for y in b]
            return min(corners), max(corners)
    b = max(b[0], 1), max(b[1], 1)
    if isinstance(operator, ast.FloorDiv):
        corners = [x // y for x in a for y in b]
        return min(corners), max(corners)
    if b[0] == b[1] and a[0] // b[0] == a[1] // b[0]:
        return a[0] % b[0], a[1] % b[0]
    return 0, b[1] - 1


def _called(name: str, of: list[Bounds]) -> Bounds:
    if name == "cdiv":  # falls where its second argument grows
        of[1] = max(of[1][1], 1), max(of[1][0], 1)
    function = _FUNCTIONS[name]
    return function(*(low for low, _ in of)), function(*(high for _, high in of))
