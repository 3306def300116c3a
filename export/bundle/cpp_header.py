"""The bundle's format in C++: a struct for each record, and its table of fields."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from itertools import groupby
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from glm_trt.export.bundle.records import alternatives, fields_of, plain, records_in, summary
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES
from glm_trt.model.rules import Rules

_SIMPLE = {str: "std::string", int: "int64_t", float: "double", bool: "bool"}
_WITHOUT_START = ("int64_t", "double", "bool", "Dtype")  # types that hold anything at first
_HEAD = """\
// Made of export/bundle/format.py by python -P -m glm_trt.export.bundle.generate; edit that.
#pragma once

#include "record.h"
#include "tensor.h"

#include <optional>
#include <string>
#include <vector>

namespace glm_trt
{

"""


def header_of(
    records: list[type], containers: dict[str, Any], constants: dict[str, str | int]
) -> str:
    """The header with the structs of `records`, each of which comes after those that it holds, with
    `containers` of them and `constants` by their names.

    `eachField` gives a struct's table: it calls a function with the name and the place of each
    field that the JSON has.
    """
    text = _HEAD
    for name, value in constants.items():
        kind, literal = ("int64_t", value) if isinstance(value, int) else ("char", f'"{value}"')
        text += f"constexpr {kind} {name}{'' if kind == 'int64_t' else '[]'} = {literal};\n"
    for record in dict.fromkeys(inner for outer in records for inner in records_in(outer)):
        text += "\n" + _struct(record)
    for name, kind in containers.items():
        text += f"\nusing {name} = {cpp_type(kind)};\n"
    return text + "\n} // namespace glm_trt\n"


def _struct(record: Any) -> str:
    hints = get_type_hints(record, include_extras=True)
    members: list[tuple[str, str | None]] = []
    for field in dataclasses.fields(record):
        kind = hints[field.name]
        meaning = next((x for x in plain(kind)[1] if isinstance(x, str)), None)
        type_name = cpp_type(kind)
        zero = "{}" if type_name in _WITHOUT_START else ""
        members.append((f"    {type_name} {cpp_name(field.name)}{zero};", meaning))
    lines = [f"//! {summary(record)}", f"struct {record.__name__}", "{", *_with_comments(members)]
    visits = [f'    visit("{x}", record.{cpp_name(x)});' for x in fields_of(record)]
    function = f"void eachField({record.__name__}& record, Visit&& visit)"
    lines += ["};", "", "template <typename Visit>", function, "{", *visits, "}"]
    return "\n".join(lines) + "\n"


def _with_comments(lines: list[tuple[str, str | None]]) -> Iterator[str]:
    """Comments of lines that follow one another stand below one another."""
    for noted, group in groupby(lines, lambda line: line[1] is not None):
        run = list(group)
        width = max(len(line) for line, _ in run)
        for line, meaning in run:
            yield f"{line:{width}} // {meaning}" if noted else line


def cpp_name(name: str) -> str:
    """A field's name in C++: header_sha256 is headerSha256."""
    return re.sub(r"_([a-z0-9])", lambda found: found[1].upper(), name)


def cpp_type(annotated: Any) -> str:
    """The type that holds a field; a choice among dtypes is a `Dtype`.

    Raises
    ------
    TypeError
        If C++ has none for it.
    """
    kind, notes = plain(annotated)
    choices = [x.choices for x in notes if isinstance(x, Rules) and x.choices]
    if choices and all(name in NUMPY_DTYPES for name in choices[0]):
        return "Dtype"
    parts = alternatives(kind)
    if len(parts) == 2 and NoneType in parts:
        return f"std::optional<{cpp_type(parts[parts[0] is NoneType])}>"
    if kind is Any:
        return "Json"
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if dataclasses.is_dataclass(kind):
        return kind.__name__  # type: ignore[union-attr]
    if get_origin(kind) is tuple:
        return f"std::vector<{cpp_type(get_args(kind)[0])}>"
    if get_origin(kind) is dict:
        values = get_args(kind)[1]
        return "Json" if values is Any else f"ByName<{cpp_type(values)}>"
    raise TypeError(f"{kind}: no type of the C++ runtime")
