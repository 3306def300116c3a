"""Frozen dataclasses as JSON: read, written, and described by a JSON Schema.

A field's type says it all. Beside `str`, `int`, `float` and `bool` there are `X | Y`,
`tuple[X, ...]`, `dict[str, X]`, `Any` and other records. `Annotated` adds to a type: `Rules`, or a
text that says what it means. A field whose metadata is `APART` is no part of the record's JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from glm_trt.model.rules import Rules

# Integers that any reader of JSON holds exactly, and that int64 has.
MAX_INTEGER = 1 << 53
APART = {"apart": True}
_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}

T = TypeVar("T")


@cache
def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a record's JSON and their types, in order."""
    hints = get_type_hints(record, include_extras=True)
    fields = dataclasses.fields(record)
    return {field.name: hints[field.name] for field in fields if field.metadata != APART}


def plain(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its annotations, and those."""
    return (kind.__origin__, kind.__metadata__) if get_origin(kind) is Annotated else (kind, ())


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union; of another type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def to_json(value: Any) -> Any:
    """The JSON values of a record, or of tuples and dicts of records."""
    if dataclasses.is_dataclass(value):
        return {name: to_json(getattr(value, name)) for name in fields_of(value.__class__)}
    if isinstance(value, dict):
        return {name: to_json(one) for name, one in value.items()}
    return [to_json(one) for one in value] if isinstance(value, tuple | list) else value


def from_json(kind: type[T], value: Any) -> T:
    """The record of JSON values that follow its schema, or the tuple or dict of records."""
    read: T = _read(kind, value)
    return read


def _read(annotated: Any, value: Any) -> Any:
    kind, _ = plain(annotated)
    choices = alternatives(kind)
    if len(choices) > 1:
        if value is None:
            return None
        # At most one of them is more than a value as it is in JSON.
        rest = [x for x in choices if x is not NoneType]
        return _read(rest[0], value) if len(rest) == 1 else value
    if dataclasses.is_dataclass(kind):
        fields = fields_of(kind)  # type: ignore[arg-type]
        return kind(**{name: _read(of, value[name]) for name, of in fields.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        return tuple(_read(get_args(kind)[0], one) for one in value)
    if get_origin(kind) is dict:
        return {name: _read(get_args(kind)[1], one) for name, one in value.items()}
    return int(value) if kind is int else value  # 1.0 is an integer, says JSON Schema


def schema_of(kind: Any, title: str) -> dict[str, Any]:
    """The JSON Schema of a type, with each record and each named type defined once."""
    definitions: dict[str, Any] = {}
    body = _schema(kind, definitions)
    if set(body) == {"$ref"}:  # a record is not referred to by itself
        body = definitions.pop(body["$ref"].removeprefix("#/$defs/"))
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return head | body | {"$defs": dict(sorted(definitions.items()))}


def _schema(annotated: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    kind, notes = plain(annotated)
    rules = [note for note in notes if isinstance(note, Rules)]
    meaning = next((note for note in notes if isinstance(note, str)), None)
    text = {} if meaning is None else {"description": meaning}
    name = next((rule.named for rule in rules if rule.named), None)
    if dataclasses.is_dataclass(kind):
        name = kind.__name__  # type: ignore[union-attr]
        if name not in definitions:
            definitions[name] = _record_schema(kind, definitions)
        return {"$ref": f"#/$defs/{name}"} | text
    body = _body(kind, definitions)
    for rule in rules:
        body |= rule.keywords()
    if kind is int and "const" not in body:
        body.setdefault("maximum", MAX_INTEGER)
        body.setdefault("minimum", -MAX_INTEGER)
    if name is None:
        return body | text
    definitions[name] = body
    return {"$ref": f"#/$defs/{name}"} | text


def _record_schema(record: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    fields = fields_of(record)
    return {
        "type": "object",
        "description": summary(record),
        "additionalProperties": False,
        "required": list(fields),
        "properties": {name: _schema(kind, definitions) for name, kind in fields.items()},
    }


def summary(record: type) -> str:
    """The first sentence of a record's docstring."""
    return " ".join((record.__doc__ or "").split("\n\n")[0].split())


def _body(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind is Any:
        return {}
    if kind in _SIMPLE:
        return {"type": _SIMPLE[kind]}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _schema(get_args(kind)[0], definitions)}
    if get_origin(kind) is dict:
        names, values = get_args(kind)
        body: dict[str, Any] = {"type": "object"}
        if names is not str:
            body["propertyNames"] = _schema(names, definitions)
        if values is not Any:
            body["additionalProperties"] = _schema(values, definitions)
        return body
    choices = alternatives(kind)
    if len(choices) < 2:
        raise TypeError(f"{kind}: no type of a record's field")
    return {"anyOf": [_schema(choice, definitions) for choice in choices]}


def records_in(kind: Any) -> Iterator[type]:
    """Every record that a type has in it, each after those that it has in it itself, once."""
    yield from dict.fromkeys(_records(kind))


def _records(annotated: Any) -> Iterator[type]:
    kind, _ = plain(annotated)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            yield from _records(hints[field.name])
        yield kind  # type: ignore[misc]
    else:
        for part in get_args(kind):
            yield from _records(part)
