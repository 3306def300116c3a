"""Arguments of a call, which GLM writes without quotes, as JSON of the types that are declared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
_DEEPEST = 32  # of schemas within schemas: one that refers to itself ends there


@dataclass(frozen=True)
class ArgumentType:
    """What kinds of JSON value an argument may be."""

    kinds: frozenset[str] = KINDS

    @property
    def is_text(self) -> bool:
        """Whether it can only be a string: then it is what was written, as it comes."""
        return self.kinds == {"string"}

    def to_json(self, written: str) -> str:
        """The argument as JSON: what was written, where that is JSON of a kind that it may be;
        otherwise a string of it.
        """
        text = written.strip()
        if not self.is_text:
            try:
                if _kinds_of(json.loads(text, parse_constant=_no_json)) & self.kinds:
                    return text  # not what Python would make of it: 1.10 stays 1.10
            except (ValueError, RecursionError):
                pass
        return json.dumps(written, ensure_ascii=False)


class Parameters:
    """The parameters of a tool, from its JSON Schema."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema if isinstance(schema, Mapping) else {}
        self._known: dict[str, ArgumentType] = {}

    def of(self, name: str) -> ArgumentType:
        """The type of one; any for a parameter that is not declared."""
        if name not in self._known:
            properties = self._schema.get("properties")
            declared = properties.get(name) if isinstance(properties, Mapping) else None
            if declared is None:
                declared = self._schema.get("additionalProperties")
            self._known[name] = ArgumentType(_kinds(declared, self._schema, 0))
        return self._known[name]


def parameters_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Parameters]:
    """Of each tool by its name, whether it lies in an envelope ({"function": …}) or not."""
    found = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            found[function["name"]] = Parameters(function.get("parameters"))
    return found


def _kinds(schema: Any, root: Mapping[str, Any], depth: int) -> frozenset[str]:
    """The kinds that `schema` allows; all where it does not say."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return KINDS
    found = KINDS
    if isinstance(reference := schema.get("$ref"), str):
        found &= _kinds(_resolved(reference, root), root, depth + 1)
    declared = schema.get("type")
    if isinstance(declared, str | list):
        names = [declared] if isinstance(declared, str) else declared
        names = [*names, *(["null"] if schema.get("nullable") is True else [])]
        found &= {kind for name in names for kind in _wider(name)}
    for word in ("enum", "const"):
        if word in schema:
            values = schema[word] if word == "enum" else [schema[word]]
            if isinstance(values, list):
                found &= frozenset[str]().union(*map(_kinds_of, values))
    for word in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(word), list) and branches:
            found &= frozenset[str]().union(*_of_each(branches, root, depth))
    if isinstance(parts := schema.get("allOf"), list) and parts:
        found = found.intersection(*_of_each(parts, root, depth))
    return found or KINDS  # one that nothing fits says nothing


def _of_each(schemas: list[Any], root: Mapping[str, Any], depth: int) -> Iterable[frozenset[str]]:
    return [_kinds(schema, root, depth + 1) for schema in schemas]


def _wider(name: Any) -> tuple[str, ...]:
    return ("integer", "number") if name == "number" else (name,)


def _resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """What a pointer into the tool's own schema is of; None for any other."""
    place: Any = root
    first, *names = reference.split("/")
    if first != "#":
        return None
    for name in names:
        name = name.replace("~1", "/").replace("~0", "~")
        place = place.get(name) if isinstance(place, Mapping) else None
    return place


def _kinds_of(value: Any) -> frozenset[str]:
    """What kinds a value is of: an integer is a number too, and so is 3.0 an integer."""
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return frozenset({"integer", "number"})
    names = {str: "string", float: "number", list: "array", dict: "object"}
    return frozenset({names.get(type(value), "null")})


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
