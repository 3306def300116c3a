"""GLM's calls as a grammar: `<tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value>…`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llguidance import regex_to_lark

from glm_trt.engines.serve.argument_types import followed, kinds
from glm_trt.engines.serve.schemas import Schema, resolve, standalone
from glm_trt.model.errors import GlmTrtError

MOST_IN_ANY_ORDER = 60  # a set of arguments is the bits of a number
# What a schema of arguments may say at its top, beside what says nothing of them.
_OF_ARGUMENTS = ("type", "properties", "required", "additionalProperties")
_SAYS_NOTHING = (
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
    "examples", "deprecated",
)  # fmt: skip
# Formats of text, as regular expressions. (What they cannot say, such as how many days February
# has, is left open.)
_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_MINUTES = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_MINUTES}:[0-5][0-9](\.[0-9]{{1,9}})?(Z|[+\-]{_MINUTES})"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "email": rf"[A-Za-z0-9_+\-]+(\.[A-Za-z0-9_+\-]+)*@{_LABEL}(\.{_LABEL})+",
}


@dataclass(frozen=True)
class Function:
    """A function that may be called.

    Attributes
    ----------
    name : as it is called.
    parameters : a JSON schema of an object; None or {} for none.
    strict : refuse what the grammar cannot express, instead of leaving it out.
    """

    name: str
    parameters: Any = None
    strict: bool = False


class Json(NamedTuple):
    """JSON that satisfies a schema; `where` is the schema's place in the request."""

    schema: dict[str, Any]
    strict: bool
    where: str


@dataclass
class Rules:
    """A grammar that is being written.

    Attributes
    ----------
    token : what stands in the grammar for a special token, by its name.
    lines : rules and terminals.
    schemas : JSON by the name of its rule.
    described : schemas of values that are written in another way, which are to be valid too.
    texts : terminals that may turn out to match nothing, with the place of their schema.
    """

    token: Callable[[str], str]
    lines: list[str] = field(default_factory=list)
    schemas: dict[str, Json] = field(default_factory=dict)
    described: list[Json] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)

    def json(self, of: Json) -> str:
        """The rule of it."""
        name = f"j{len(self.schemas)}"
        self.schemas[name] = of
        return f"@{name}"

    def terminal(self, expression: str | None, where: str = "") -> str:
        """The terminal of text; of any text for None."""
        if expression is None:
            return "TEXT"
        name = f"T{len(self.lines)}"
        self.lines.append(f"{name}: {expression}")
        if where and ("&" in expression or "/" in expression):  # not a list of words
            self.texts.append((expression, where))
        return name


def object_of(function: Function, where: str) -> Mapping[str, Any]:
    """The schema of a function's arguments with `$ref` at its top followed.

    Raises
    ------
    GlmTrtError
        If it is not one of an object whose arguments it names.
    """
    if not function.parameters or function.parameters is True:
        return {}
    schema = followed(function.parameters)
    if "$ref" in schema or schema.get("type") not in ("object", ["object"]):
        raise GlmTrtError(f"{where}: expected the schema of an object")
    others = sorted({*schema} - {*_OF_ARGUMENTS, *_SAYS_NOTHING})
    combined = {"anyOf", "oneOf", "allOf", "$ref"} & {*others}
    if others and (function.strict or (combined and not schema.get("properties"))):
        raise GlmTrtError(
            f"{where}: {others[0]} is not supported at the top of a function's parameters; "
            "expected properties, required and additionalProperties"
        )
    return schema


def function_rule(rules: Rules, name: str, function: Function, where: str) -> None:
    """Write the rule `name` of a call of `function`, between the tokens that enclose it."""
    schema = object_of(function, where)
    root = function.parameters
    properties: Mapping[str, Schema] = schema.get("properties", {})
    more = schema.get("additionalProperties")
    required = list(dict.fromkeys(schema.get("required", ())))
    arguments = {key: value for key, value in properties.items() if value is not False}
    for key in required:
        if key not in arguments:
            if key in properties or more is False:
                raise GlmTrtError(f"{where}: nothing satisfies it: {key!r} is required, and false")
            arguments[key] = True if more is None else more
    if schema:
        rules.described.append(Json(standalone(root, root, where), function.strict, where))
    values = {}
    for key, value in arguments.items():
        of = Json(standalone(value, root, where), function.strict, where)
        values[key] = _argument(rules, _literal(key), _value(rules, of))
    begin = f"{name}: {_literal(function.name)}"
    if not values and more not in (None, False):
        key = rules.terminal(r"/[^\s<>]{1,64}/")
        value = _value(rules, Json(standalone(more, root, where), function.strict, where))
        rules.lines.append(f"{begin} {name}m*\n{name}m: {_argument(rules, key, value)}")
    elif not values:
        rules.lines.append(begin)
    elif len(values) > MOST_IN_ANY_ORDER:
        each = [f"{name}k{i}" + "?" * (key not in required) for i, key in enumerate(values)]
        rules.lines.append(f"{begin} {' '.join(each)}")
        rules.lines += [f"{name}k{i}: {value}" for i, value in enumerate(values.values())]
    else:
        # Bits of those that came; the required ones are the lowest.
        order = [*required, *(key for key in values if key not in required)]
        end = f" %if is_ones([0:{len(required)}])" if required else ""
        rules.lines.append(f'{begin} {name}a::0x0\n{name}a::_: ""{end}')
        rules.lines += [
            f"  | {values[key]} {name}a::set_bit({i}) %if bit_clear({i})"
            for i, key in enumerate(order)
        ]


def _argument(rules: Rules, key: str, value: str) -> str:
    token = rules.token
    return (
        f"{token('<arg_key>')} {key} {token('</arg_key>')} "
        f"{token('<arg_value>')} {value} {token('</arg_value>')}"
    )


def _value(rules: Rules, of: Json) -> str:
    """What may stand as the value: text where the schema has strings, JSON where it has others."""
    schema = of.schema
    types = kinds(schema, schema)
    if "string" not in types:
        return rules.json(of)
    text = Strings(schema, of.strict, of.where).terminal(schema)
    if types == {"string"}:
        return rules.terminal(text, of.where)
    of_others: dict[str, Any] = {"allOf": [{"type": sorted(types - {"string"})}, schema]}
    of_others |= {key: schema[key] for key in ("$defs", "$schema") if key in schema}
    json_rule = rules.json(of._replace(schema=of_others))
    if text is None or "/" in text:
        # Text that would be read as another value must be one that the schema has. What is no
        # JSON, or JSON of a type that is not declared, is read as it stands.
        said = json.dumps(schema)
        begins = [r"\[" for _ in {"array"} & types] + [r"\{" for _ in {"object"} & types]
        if types & {"integer", "number"} and re.search("inimum|aximum|multipleOf|enum|const", said):
            begins.append(r"\-0-9")
        if "boolean" in types and re.search("enum|const", said):
            begins.append("tf")
        if text is not None:
            begins.append('"')  # a JSON string, of which the schema says nothing then
        space = r"\s\x1c-\x1f"
        plain = rf"/[{space}]*([^{space}{''.join(begins)}](?s:.)*)?/" if begins else None
        text = plain if text is None else f"({text}) & ({plain})"
    return f"({rules.terminal(text, of.where)} | {json_rule})"


class Strings:
    """What strings a schema has, as a terminal of the grammar; `terminal` is called once.

    Parameters
    ----------
    root : what references lead into.
    strict, where : as for `function_rule`.
    """

    def __init__(self, root: Schema, strict: bool, where: str) -> None:
        self._root, self._strict, self._where = root, strict, where
        self._room = 500
        self._within: list[str] = []

    def terminal(self, schema: Schema) -> str | None:
        """Of `schema`, which has strings; None if it has all."""
        self._room -= 1
        if self._room < 0:
            raise GlmTrtError(f"{self._where}: too many alternatives of text")
        if not isinstance(schema, dict):
            return None
        parts: list[str | None] = []
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            parts.append(_one_of([_literal(x) for x in values if isinstance(x, str)]))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                of = [x for x in schema[key] if "string" in kinds(x, self._root)]
                found = [self.terminal(x) for x in of]
                parts.append(None if None in found else _one_of([x for x in found if x]))
        parts += [self.terminal(x) for x in schema.get("allOf", ())]
        if "$ref" in schema and schema["$ref"] not in self._within:
            self._within.append(schema["$ref"])
            parts.append(self.terminal(resolve(self._root, schema["$ref"], self._where)))
            self._within.pop()
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        if least or most != "":
            parts.append(f"/(?s:.){{{least},{most}}}/")
        if "pattern" in schema:
            parts.append(self._pattern(schema["pattern"]))
        if "format" in schema:
            parts.append(self._format(schema["format"]))
        every = [part for part in parts if part is not None]
        return " & ".join(f"({part})" for part in every) if every else None

    def _format(self, name: str) -> str | None:
        if name in FORMATS:
            return _regex(FORMATS[name])
        if self._strict:
            raise GlmTrtError(
                f"{self._where}: format {name!r} is not supported; expected one of "
                + ", ".join(FORMATS)
            )
        return None

    def _pattern(self, pattern: str) -> str | None:
        """Text in which `pattern` is found."""
        anchored = _anchors(pattern)
        if anchored is not None:
            begins, inner, ends = anchored
            return _regex(f"{'' if begins else '(?s:.)*'}({inner}){'' if ends else '(?s:.)*'}")
        if self._strict:
            raise GlmTrtError(
                f"{self._where}: pattern {pattern!r}: ^ and $ are supported at its ends alone"
            )
        return None


def _one_of(expressions: list[str]) -> str:
    return " | ".join(f"({x})" for x in expressions)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(pattern: str) -> str:
    r"""As a grammar has it: `\d`, `\w` and `/` as in JSON schemas."""
    return f"/{regex_to_lark(pattern, 'dw')}/"


def _anchors(pattern: str) -> tuple[bool, str, bool] | None:
    """Whether it is bound to the text's beginning, what it is, and whether to its end; None where
    an anchor is elsewhere.
    """
    plain = re.sub(r"\\.", "__", pattern, flags=re.DOTALL)  # as long, without what is escaped
    plain = re.sub(r"\[\^?\]?[^\]]*\]", lambda match: "_" * len(match[0]), plain)
    begins, ends = plain.startswith("^"), plain.endswith("$")
    inside = plain[begins : len(plain) - ends]
    if "^" in inside or "$" in inside or re.search(r"\\[bBAzZ]", pattern):
        return None
    if (begins or ends) and _has_alternatives(inside):
        return None
    return begins, pattern[begins : len(pattern) - ends], ends


def _has_alternatives(plain: str) -> bool:
    depth = 0
    for character in plain:
        depth += (character == "(") - (character == ")")
        if character == "|" and not depth:
            return True
    return False
