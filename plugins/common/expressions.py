"""Integer expressions over sizes: evaluated in Python, written out as C++.

Launches are data that both the torch side and the C++ library follow, so their sizes and
conditions are expressions in a small common language: names, integers, `+ - * // %`,
comparisons, `and or not`, `cdiv(a, b)`, `next_power_of_2(n)`, `min(…)`, `max(…)`.
All values are non-negative, for which `//` means the same in both languages.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

_OPERATORS: dict[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "/", ast.Mod: "%",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.And: "&&", ast.Or: "||",
}  # fmt: skip
_POSTFIX: dict[type, str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//"}
_FUNCTIONS = {"cdiv": 2, "next_power_of_2": 1, "min": None, "max": None}


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least `n` (1 for 0)."""
    return 1 << max(n - 1, 0).bit_length()


def evaluate(expression: str, names: Mapping[str, Any], minimum: Callable[..., Any] = min) -> Any:
    """The expression's value, an integer.

    `minimum` is what `min` means: another one where sizes are symbols. Raises NameError for a name
    that is not among `names`, ValueError where something is divided by zero.
    """
    functions = {"cdiv": cdiv, "next_power_of_2": next_power_of_2, "min": minimum, "max": max}
    try:
        value = eval(_compiled(expression), {"__builtins__": {}}, {**functions, **names})
    except ZeroDivisionError:
        raise ValueError(f"{expression}: divided by zero") from None
    return int(value) if isinstance(value, bool) else value


def names_in(expression: str) -> set[str]:
    """The sizes that the expression reads."""
    tree = parsed(expression)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names - _FUNCTIONS.keys()


def to_cpp(expression: str) -> str:
    """The expression in C++ over `int64_t` variables of the same names."""
    return _cpp(parsed(expression).body)


def to_postfix(expression: str) -> list[tuple[str, str | int]]:
    """The expression for a stack machine: ("name", NAME), ("constant", N) or ("operator", OP).

    OP is one of + - * // min max; ValueError for anything else.
    """
    return _postfix(parsed(expression).body)


def _postfix(node: ast.AST) -> list[tuple[str, str | int]]:
    if isinstance(node, ast.Name):
        return [("name", node.id)]
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return [("constant", int(node.value))]
    if isinstance(node, ast.BinOp) and type(node.op) in _POSTFIX:
        both = [*_postfix(node.left), *_postfix(node.right)]
        return [*both, ("operator", _POSTFIX[type(node.op)])]
    call = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    if isinstance(node, ast.Call) and call in ("min", "max") and len(node.args) == 2:
        both = [part for argument in node.args for part in _postfix(argument)]
        return [*both, ("operator", call)]
    raise ValueError(f"not for a stack machine: {ast.unparse(node)}")


@lru_cache
def parsed(expression: str) -> ast.Expression:
    """The expression's syntax; ValueError for what is not in the language."""
    tree = ast.parse(expression, mode="eval")
    _cpp(tree.body)  # refuses it
    return tree


@lru_cache
def _compiled(expression: str) -> Any:
    return compile(parsed(expression), expression, "eval")


def _cpp(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return f"INT64_C({int(node.value)})"
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return f"({_cpp(node.left)} {_OPERATORS[type(node.op)]} {_cpp(node.right)})"
    if isinstance(node, ast.BoolOp):
        return "(" + f" {_OPERATORS[type(node.op)]} ".join(map(_cpp, node.values)) + ")"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return f"(!{_cpp(node.operand)})"
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        right = _cpp(node.comparators[0])
        return f"({_cpp(node.left)} {_OPERATORS[type(node.ops[0])]} {right})"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _call(node.func.id, [_cpp(argument) for argument in node.args])
    raise ValueError(f"not in the language of launches: {ast.unparse(node)}")


def _call(function: str, arguments: list[str]) -> str:
    if function not in _FUNCTIONS or _FUNCTIONS[function] not in (None, len(arguments)):
        raise ValueError(f"not in the language of launches: {function}/{len(arguments)}")
    if function in ("min", "max"):
        return f"std::{function}<int64_t>({{{', '.join(arguments)}}})"
    return f"{function}({', '.join(arguments)})"
