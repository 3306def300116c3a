"""JSON schemas as callers send them: what is refused of them, what they are made to be."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from glm_trt.model.errors import GlmTrtError

MOST_BYTES, MOST_DEPTH, MOST_REFERENCES = 1 << 16, 64, 256
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = (
    "items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains",
    "propertyNames", "unevaluatedItems", "unevaluatedProperties", "contentSchema",
)  # fmt: skip
# Those that a grammar makes values of.
_VALUES = ("properties", "patternProperties", *_LISTS, "additionalProperties", "additionalItems")
# What keywords have.
_FORMS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_OF_NAMES, (dict,)),
    **dict.fromkeys(_LISTS, (list,)),
    **dict.fromkeys(_SINGLE, (dict, bool)),
    "items": (dict, bool, list),
    **dict.fromkeys(("required", "enum"), (list,)),
    **dict.fromkeys(("pattern", "format", "$ref"), (str,)),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "minProperties"), (int,)),
    "type": (str, list),
}
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
Schema = Any  # an object or a boolean


def checked_schema(schema: Schema, where: str, strict: bool) -> str:
    """The schema as JSON.

    Raises
    ------
    GlmTrtError
        That begins with `where`: if it is no schema, larger or deeper than the limits, refers to
        what is not in it, or has parts that nothing finite satisfies; if it is strict, and wants
        more properties than a grammar can count.
    """
    check_depth(schema, where)
    if not isinstance(schema, dict | bool):
        raise GlmTrtError(f"{where}: expected a JSON schema, found {type(schema).__name__}")
    if schema is False:
        raise GlmTrtError(f"{where}: nothing satisfies it: it is false")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is one, of half a surrogate pair
        raise GlmTrtError(f"{where}: not JSON: {error}") from None
    if size > MOST_BYTES:
        raise GlmTrtError(f"{where}: expected at most {MOST_BYTES} bytes, found {size}")
    references = set()
    for part in _parts(schema):
        _check_forms(part, where)
        if part is not schema and isinstance(part.get("$id"), str):
            raise GlmTrtError(f"{where}: $id {part['$id']!r} below the top is not supported")
        if "$ref" in part:
            resolve(schema, part["$ref"], where)
            references.add(part["$ref"])
        fewest = part.get("minProperties", 0)
        if strict and fewest > len(part.get("required", ())) + 1:
            # Those without a name may come twice.
            raise GlmTrtError(
                f"{where}: minProperties {fewest} is not supported: expected at most one more than "
                "are required"
            )
    if len(references) > MOST_REFERENCES:
        raise GlmTrtError(
            f"{where}: expected $ref to at most {MOST_REFERENCES} places, found {len(references)}"
        )
    _check_base_case(schema, where)
    return text


def resolve(root: Schema, reference: Any, where: str) -> Schema:
    """What `reference` ("#/$defs/NAME") leads to in `root`."""
    if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
        raise GlmTrtError(
            f"{where}: $ref {reference!r}: only references into the schema itself are supported, "
            "such as #/$defs/NAME"
        )
    found = root
    for step in urllib.parse.unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            raise GlmTrtError(f"{where}: $ref {reference!r}: there is no such place in the schema")
    if not isinstance(found, dict | bool):
        raise GlmTrtError(f"{where}: $ref {reference!r}: there is no schema")
    return found


def standalone(schema: Schema, root: Schema, where: str) -> dict[str, Any]:
    """A schema out of `root`, with all that it refers to, as `$defs` of its own."""
    names: dict[str, str] = {}
    waiting: list[str] = []

    def renamed(value: Any, is_schema: bool = True) -> Any:
        if isinstance(value, list):
            return [renamed(x) for x in value]
        if not isinstance(value, dict):
            return value
        if not is_schema:  # schemas by names
            return {name: renamed(x) for name, x in value.items()}
        made: dict[str, Any] = {}
        for key, of in value.items():
            if key == "$ref":
                if of not in names:
                    names[of] = f"d{len(names)}"
                    waiting.append(of)
                made[key] = f"#/$defs/{names[of]}"
            elif key in _OF_NAMES:
                if "efs" not in key and key != "definitions":
                    made[key] = renamed(of, is_schema=False)
            elif key in _LISTS or key in _SINGLE:
                made[key] = renamed(of)
            elif key != "$id":
                made[key] = of
        if made.pop("nullable", None) is True and "type" in made:  # as OpenAPI says it
            types = made["type"]
            made["type"] = [*(types if isinstance(types, list) else [types]), "null"]
        return made

    whole: dict[str, Any] = {"enum": []} if schema is False else {}
    if isinstance(schema, dict):
        whole = renamed(schema)
    definitions = {}
    while waiting:
        reference = waiting.pop()
        definitions[names[reference]] = renamed(resolve(root, reference, where))
    if definitions:
        whole["$defs"] = definitions
    if isinstance(root, dict) and "$schema" in root:
        whole["$schema"] = root["$schema"]  # what some keywords mean
    return whole


def _children(
    schema: Mapping[str, Any], keywords: tuple[str, ...] = (*_OF_NAMES, *_LISTS, *_SINGLE)
) -> Iterator[Schema]:
    """The schemas in a schema, one level down."""
    for key in dict.fromkeys(keywords):
        of = schema.get(key)
        if isinstance(of, dict) and key in _OF_NAMES:
            yield from of.values()
        elif isinstance(of, list) and key in _LISTS:
            yield from of
        elif isinstance(of, dict) and key in _SINGLE:
            yield of


def _parts(schema: Schema) -> Iterator[dict[str, Any]]:
    """A schema and all in it."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(_children(part))


def _check_forms(schema: dict[str, Any], where: str) -> None:
    """Whether its keywords have what they should, as far as anything here looks at them."""
    for key, forms in _FORMS.items():
        value = schema.get(key, forms[0]())
        if not isinstance(value, forms) or (isinstance(value, bool) and bool not in forms):
            expected = " or ".join(form.__name__ for form in forms)
            raise GlmTrtError(f"{where}: {key}: expected {expected}, found {type(value).__name__}")
    for child in _children(schema):
        if not isinstance(child, dict | bool):
            raise GlmTrtError(f"{where}: expected a JSON schema, found {json.dumps(child)[:80]}")
    types = schema.get("type", [])
    for name in [types] if isinstance(types, str) else types:
        if name not in _TYPES:
            raise GlmTrtError(
                f"{where}: type: expected one of {', '.join(_TYPES)}, found {json.dumps(name)[:80]}"
            )
    for name in schema.get("required", ()):
        if not isinstance(name, str):
            raise GlmTrtError(f"{where}: required: expected names, found {json.dumps(name)[:80]}")


def check_depth(value: Any, where: str) -> None:
    """Before anything that calls itself.

    Raises
    ------
    GlmTrtError
        That begins with `where`, if JSON is nested deeper than `MOST_DEPTH` levels.
    """
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            below
            for of in level
            if isinstance(of, dict | list)
            for below in (of.values() if isinstance(of, dict) else of)
        ]
        if not level:
            return
    raise GlmTrtError(f"{where}: nested deeper than {MOST_DEPTH} levels")


def _check_base_case(root: Schema, where: str) -> None:
    """Whether something finite satisfies each part of `root`: a model that has begun a part that
    leads back to itself would go on for ever.

    Each schema is a conjunction of clauses, each clause one of several schemas; those without a
    clause hold, and so, one after the other, do those whose clauses each have one that holds.
    (`false` counts as holding: it is found where it makes a difference.)
    """
    ids: dict[int, int] = {}
    missing: list[int] = []  # of each schema, clauses that have none that holds yet
    needed_by: list[list[tuple[int, int]]] = []  # its places in clauses: a schema, a clause of it
    kept: list[dict[str, Any]] = []  # so that no id comes twice

    def number(schema: dict[str, Any]) -> int:
        if id(schema) not in ids:
            ids[id(schema)] = len(kept)
            missing.append(0)
            needed_by.append([])
            kept.append(schema)
        return ids[id(schema)]

    if isinstance(root, dict):
        number(root)
    for node, schema in enumerate(kept):  # which grows
        for part in _children(schema, _VALUES):
            if isinstance(part, dict):
                number(part)
        clauses = _clauses(schema, root, where)
        clauses = [clause for clause in clauses if all(isinstance(x, dict) for x in clause)]
        missing[node] = len(clauses)
        for place, clause in enumerate(clauses):
            for member in clause:
                needed_by[number(member)].append((node, place))
    held = [node for node, count in enumerate(missing) if not count]
    met: set[tuple[int, int]] = set()
    while held:
        for of in needed_by[held.pop()]:
            if of not in met:
                met.add(of)
                missing[of[0]] -= 1
                if not missing[of[0]]:
                    held.append(of[0])
    if any(missing):
        said = json.dumps(kept[next(node for node, count in enumerate(missing) if count)])
        raise GlmTrtError(
            f"{where}: nothing finite satisfies {said[:80]}{'…' * (len(said) > 80)}: "
            "it leads back to itself with no other way"
        )


def _clauses(schema: dict[str, Any], root: Schema, where: str) -> list[list[Schema]]:
    clauses = [[resolve(root, schema["$ref"], where)]] if "$ref" in schema else []
    clauses += [schema[key] for key in ("anyOf", "oneOf") if _list(schema, key)]
    clauses += [[member] for member in _list(schema, "allOf")]
    types = schema.get("type", "string")
    of_types = {types} if isinstance(types, str) else {*types}
    if "const" in schema or "enum" in schema or not of_types <= {"array", "object"}:
        return clauses
    properties = schema.get("properties", {})
    required = [properties[name] for name in schema.get("required", ()) if name in properties]
    fewest = schema.get("minItems", 0)
    items: list[Schema] = []
    if fewest > 0:
        rest = schema.get("items", True)
        items = (_list(schema, "prefixItems") or _list(schema, "items"))[:fewest]
        if len(items) < fewest and not isinstance(rest, list):
            items.append(rest)
    if of_types == {"object"}:
        return clauses + [[member] for member in required]
    if of_types == {"array"}:
        return clauses + [[member] for member in items]
    return [*clauses, [{"allOf": required}, {"allOf": items}]]


def _list(schema: dict[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []
