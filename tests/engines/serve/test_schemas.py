"""Schemas that are refused: with their place and the reason, and soon."""

from __future__ import annotations

import time
from typing import Any

import pytest
from answers import begun, refused, schema_form

from glm_trt.engines.serve.argument_types import Parameters
from glm_trt.engines.serve.call_grammar import Function
from glm_trt.engines.serve.grammar import AnswerForm, Grammars
from glm_trt.model.errors import GlmTrtError

TIME = Function("get_time")
GET_TIME = {"tool_choice": "function", "function": "get_time"}


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


ITSELF = {"$ref": "#/$defs/a"}
REFUSED = [
    (5, "expected a JSON schema, found int"),
    (False, "nothing satisfies it"),
    ({"type": "strin"}, 'type: expected one of .*, found "strin"'),
    ({"items": {"type": ["null", {}]}}, "type: expected one of .*, found {}"),
    ({"type": {}}, "type: expected str or list, found dict"),
    ({"properties": {"a": {"properties": []}}}, "properties: expected dict, found list"),
    ({"anyOf": {"a": 3}}, "anyOf: expected list, found dict"),
    ({"anyOf": [3]}, "expected a JSON schema, found 3"),
    ({"properties": {"a": None}}, "expected a JSON schema, found null"),
    ({"enum": "ab"}, "enum: expected list, found str"),
    ({"required": [["a"]]}, "required: expected names, found"),
    ({"type": "string", "minLength": "2"}, "minLength: expected int, found str"),
    ({"type": "string", "maxLength": True}, "maxLength: expected int, found bool"),
    ({"type": "string", "maxLength": -1}, "Expected positive integer for 'maxLength'"),
    ({"type": "string", "pattern": None}, "pattern: expected str, found NoneType"),
    ({"$ref": 3}, "ref: expected str, found int"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "Unsatisfiable schema: incompatible types"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, r"minimum \(5\) is greater than maximum"),
    ({"type": "object", "required": ["a"], "properties": {"a": False}}, "'a' is unsatisfiable"),
    ({"type": "array", "uniqueItems": True}, "Unimplemented keys: .*uniqueItems"),
    ({"type": "string", "pattern": "("}, "unclosed group"),
    ({"type": "string", "pattern": "a(?=b)"}, "look-around"),
    ({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}, "Unimplemented keys"),
    ({"$ref": "https://example.com/x"}, "only references into the schema itself"),
    ({"$ref": "#/$defs/gone"}, "there is no such place"),
    ({"$ref": "#"}, "nothing finite satisfies"),
    ({"$defs": {"a": {"type": "object", "required": ["b"], "properties": {"b": ITSELF}}}, **ITSELF},
     "nothing finite satisfies"),
    ({"$defs": {"a": {"anyOf": [{"type": "array", "minItems": 1, "items": ITSELF}]}}, **ITSELF},
     "nothing finite satisfies"),
    ({"const": float("nan")}, "not JSON"),
    ({"const": "\ud800"}, "not JSON"),
    (nested(64), "nested deeper than 64 levels"),
    (nested(100_000), "nested deeper than 64 levels"),
    ({"enum": ["x" * 700] * 100}, "expected at most 65536 bytes, found 70"),
    ({"$defs": {f"d{i}": {} for i in range(300)},
      "anyOf": [{"$ref": f"#/$defs/d{i}"} for i in range(300)]}, "expected .ref to at most 256"),
    ({"allOf": [{"anyOf": [{"properties": {f"p{k}": {"const": i}}} for i in range(12)]}
                for k in range(6)]}, "schema too large"),
    ({"properties": {"a": {"$id": "x", "type": "null"}}}, "below the top"),
    ({"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": {
        "type": "array", "minItems": 2, "prefixItems": [{}], "items": ITSELF}}},
     "leads back to itself with no other way"),
    ({"type": "object", "properties": {"a": {"type": "object", "minProperties": 4,
                                             "required": ["b", "c"]}}}, "minProperties 4"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_a_schema_is_refused_with_its_place(grammars: Grammars, schema: Any, reason: str) -> None:
    began = time.process_time()
    with pytest.raises(GlmTrtError, match=rf"^response_format\.json_schema\.schema: .*{reason}"):
        grammars.constraint(schema_form(schema))
    assert time.process_time() - began < 1
    # As a function's argument too, whose references are of its parameters.
    if isinstance(schema, dict) and "$ref" in schema:
        schema = {**schema, "properties": {"x": {"$ref": schema["$ref"]}}, "required": ["x"]}
        del schema["$ref"]
    else:
        schema = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    functions = (TIME, Function("f", schema, strict=True))
    with pytest.raises(GlmTrtError, match=r"^tools\[1\]\.function\.parameters: "):
        grammars.constraint(AnswerForm(functions=functions))


@pytest.mark.parametrize("schema", [
    {"type": "integer", "multipleOf": 1_000_003},
    {"properties": {f"p{i}": {"multipleOf": 10_007 + i} for i in range(300)}},
], ids=["one", "many"])  # fmt: skip
def test_a_schema_that_costs_too_much_is_refused_soon(grammars: Grammars, schema: Any) -> None:
    began = time.monotonic()
    with pytest.raises(GlmTrtError, match=r"^response_format\.json_schema\.schema: too complex"):
        grammars.constraint(schema_form(schema))
    assert time.monotonic() - began < 10  # of one second, on a machine that does other things


def test_recursion_with_a_base_case_is_not_refused(grammars: Grammars) -> None:
    tree = {"type": "object", "properties": {
        "left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "all": {"items": {"$ref": "#"}}},
        "required": ["left", "all"]}  # fmt: skip
    text = '{"left": {"left": null, "all": []}, "all": [{"left": null, "all": 3}]}'
    assert refused(begun(grammars, schema_form(tree)), text) is None


def test_what_is_not_strict_leaves_out_what_it_cannot_express(grammars: Grammars) -> None:
    schema = {"type": "object", "properties": {
        "a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        "b": {"type": "string", "format": "uri-reference"}},
        "dependentRequired": {"a": ["b"]}}  # fmt: skip
    assert (
        refused(begun(grammars, schema_form(schema, strict=False)), '{"a": [1, 1], "b": "x"}')
        is None
    )
    assert refused(begun(grammars, schema_form(schema, strict=False)), '{"a": ["') == '"'
    with pytest.raises(GlmTrtError, match="dependentRequired"):
        grammars.constraint(schema_form(schema))
    free = AnswerForm(functions=(Function("f", schema),))
    call = "<tool_call>f<arg_key>a</arg_key><arg_value>[1, 1]</arg_value></tool_call>"
    assert refused(begun(grammars, free), call) is None
    with pytest.raises(GlmTrtError, match=r"tools\[0\].*dependentRequired is not supported at the"):
        grammars.constraint(AnswerForm(functions=(Function("f", schema, strict=True),)))


@pytest.mark.parametrize(("functions", "options", "reason"), [
    ((TIME, TIME), {}, r"tools\[1\].function.name: 'get_time' is there twice"),
    (tuple(Function(f"f{i}") for i in range(129)), {}, "tools: expected at most 128, found 129"),
    ((TIME,), GET_TIME | {"function": "x"}, "tool_choice.function.name: 'x' is none"),
    ((), {"tool_choice": "required"}, "tool_choice: expected tools"),
    ((), {"tool_choice": "function", "response": "json_object"}, "tool_choice: expected tools"),
    ((Function("f", {"type": "string"}),), {}, r"tools\[0\].*: expected the schema of an object"),
    ((Function("f", {"anyOf": [{"type": "object"}]}),), {}, "anyOf is not supported at the top"),
    ((Function("f", {"properties": {"a": {"type": "string", "format": "uri"}}}, True),), {},
     r"tools\[0\].function.parameters: format 'uri' is not supported"),
    ((Function("f", {"properties": {"a": {"type": "string", "pattern": "a$|b"}}}, True),), {},
     "at its ends alone"),
    ((Function("f", {"properties": {"a": {"type": "string", "pattern": "^a|b"}}}, True),), {},
     "at its ends alone"),
    ((Function("f", {"properties": {"a": {"enum": ["a"], "pattern": "b"}}}),), {}, r"^tools\[0\]"),
    (tuple(Function(f"f{i}", {"description": "x" * 60_000}) for i in range(9)), {},
     "tools: expected at most 524288 bytes"),
])  # fmt: skip
def test_functions_are_refused_by_name(
    grammars: Grammars, functions: tuple[Function, ...], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(GlmTrtError, match=reason):
        grammars.constraint(AnswerForm(functions=functions, **options))


def test_references_that_double_at_each_level(grammars: Grammars) -> None:
    levels = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}
    parameters = {"properties": {"a": {"$ref": "#/$defs/d0"}},
                  "$defs": levels | {"d60": {"type": "string"}}}  # fmt: skip
    began = time.process_time()
    Parameters(parameters).of("a")
    with pytest.raises(GlmTrtError, match=r"^tools\[0\].function.parameters: "):
        grammars.constraint(AnswerForm(functions=(Function("f", parameters),)))
    assert time.process_time() - began < 1
