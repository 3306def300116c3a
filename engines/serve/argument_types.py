"""Arguments of a call, which GLM writes without quotes, as JSON of the types that are declared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm_trt.engines.serve.schemas import resolve
from glm_trt.model.errors import GlmTrtError

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
        self._root = schema
        self._schema = followed(schema)
        self._known: dict[str, ArgumentType] = {}

    def of(self, name: str) -> ArgumentType:
        """The type of one; any for a parameter that is not declared."""
        if name not in self._known:
            properties = self._schema.get("properties")
            declared = properties.get(name) if isinstance(properties, Mapping) else None
            if declared is None:
                declared = self._schema.get("additionalProperties")
            self._known[name] = ArgumentType(kinds(declared, self._root))
        return self._known[name]


def parameters_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Parameters]:
    """Of each tool by its name, whether it lies in an envelope ({"function": …}) or not."""
    found = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            found[function["name"]] = Parameters(function.get("parameters"))
    return found


def followed(schema: Any) -> Mapping[str, Any]:
    """A schema of parameters, with `$ref` at its top followed."""
    root = schema
    for _ in range(_DEEPEST):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        of = _resolved(schema["$ref"], root)
        own = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**own, **of} if isinstance(of, Mapping) else own
    return schema if isinstance(schema, Mapping) else {}


def kinds(schema: Any, root: Any) -> frozenset[str]:
    """The kinds that `schema` allows; all where it does not say. `root` is what references are
    into.
    """
    known: dict[str, frozenset[str]] = {}

    def of_each(schemas: list[Any], depth: int) -> list[frozenset[str]]:
        return [of(schema, depth + 1) for schema in schemas]

    def of(schema: Any, depth: int) -> frozenset[str]:
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            return KINDS
        found = KINDS
        if isinstance(reference := schema.get("$ref"), str):
            if reference not in known:  # else each level of references would double the work
                known[reference] = KINDS  # within itself
                known[reference] = of(_resolved(reference, root), depth + 1)
            found &= known[reference]
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
                found &= frozenset[str]().union(*of_each(branches, depth))
        if isinstance(parts := schema.get("allOf"), list) and parts:
            found = found.intersection(*of_each(parts, depth))
        return found or KINDS  # one that nothing fits says nothing

    return of(schema, 0)


def _wider(name: Any) -> tuple[str, ...]:
    return ("integer", "number") if name == "number" else (str(name),)


def _resolved(reference: Any, root: Any) -> Any:
    """What a pointer into the tool's own schema is of; None for any other."""
    try:
        return resolve(root, reference, "")
    except GlmTrtError:
        return None


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
