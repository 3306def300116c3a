"""Answers by a grammar: JSON, calls, reasoning before them, with drafts and taken back."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from answers import (
    ENDS,
    MARKS,
    SPECIAL,
    TEXT,
    TINY,
    begun,
    calls_in,
    drawn,
    ids,
    random_object,
    random_schema,
    refused,
    schema_form,
    with_definitions,
)

from glm_trt.engines.python.request import GenerateOptions
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.python.text import Text
from glm_trt.engines.serve.argument_types import Parameters
from glm_trt.engines.serve.call_grammar import Function
from glm_trt.engines.serve.grammar import AnswerForm, Grammars
from glm_trt.model.child_python import python
from glm_trt.model.errors import GlmTrtError

WEATHER = Function("get_weather", {
    "type": "object", "required": ["city"], "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]},
        "when": {"type": ["string", "null"]}, "at": {"$ref": "#/$defs/place"},
    },
    "$defs": {"place": {"type": "object", "required": ["lat"], "properties": {
        "lat": {"type": "number"}, "near": {"$ref": "#/$defs/place"}}}},
})  # fmt: skip
TIME = Function("get_time")
BOTH = (WEATHER, TIME)


def read(arguments: dict[str, str], schema: Any) -> dict[str, Any]:
    """As the server reads them."""
    types = Parameters(schema)
    return {key: json.loads(types.of(key).to_json(text)) for key, text in arguments.items()}


@pytest.mark.parametrize("seed", range(20))
def test_what_is_drawn_satisfies_its_schema(grammars: Grammars, seed: int) -> None:
    random = Random(seed)
    schema = random_schema(random) if seed % 2 else with_definitions(random)
    for _ in range(3):
        constraint = begun(grammars, schema_form(schema))
        tokens = drawn(constraint, TEXT, ENDS, random, 400)
        if constraint.ended:
            text = TEXT.decode([x for x in tokens if x not in ENDS], skip_special_tokens=False)
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("seed", range(20))
def test_arguments_that_are_drawn_satisfy_theirs(grammars: Grammars, seed: int) -> None:
    random = Random(seed)
    schema = random_object(random) if seed % 2 else with_definitions(random)
    form = AnswerForm(
        functions=(Function("f", schema, strict=True), Function("f_2")), thinking=seed % 3 == 0,
        tool_choice="required", parallel_calls=seed % 4 > 0,
    )  # fmt: skip
    for _ in range(3):
        constraint = begun(grammars, form)
        tokens = drawn(constraint, TEXT, ENDS, random, 400)
        if not constraint.ended:
            continue
        text, calls = calls_in([x for x in tokens if x not in ENDS], TEXT)
        assert calls and (not text or form.thinking) and (form.parallel_calls or len(calls) == 1)
        for name, arguments in calls:
            assert name in ("f", "f_2") and (name == "f" or not arguments)
            if name == "f":
                assert {*arguments} <= {*schema["properties"]}
                jsonschema.Draft202012Validator(schema).validate(read(arguments, schema))


CALL = (
    "<tool_call>get_weather<arg_key>days</arg_key><arg_value>3</arg_value><arg_key>city</arg_key>"
    '<arg_value>Be"rn</arg_value></tool_call>'
)
NOW = "<tool_call>get_time</tool_call>"


GET_TIME = {"tool_choice": "function", "function": "get_time"}


@pytest.mark.parametrize(("options", "text", "bad", "ended"), [
    ({}, f"Let me see.{CALL}{NOW}", None, False),
    ({}, "<think>", "<think>", False),
    ({}, "<tool_call>get_t", None, False),
    ({}, "<tool_call>get_x", "x", False),
    ({}, "<tool_call>get_weather</tool_call>", "</tool_call>", False),
    ({}, f"{NOW}.", ".", False),
    ({}, f"{CALL}<tool_call>get_time<arg_key>", "<arg_key>", False),
    ({"parallel_calls": False}, f"Hm{NOW}<tool_call>", "<tool_call>", True),
    ({"thinking": True}, f"I think{NOW}", NOW, False),
    ({"thinking": True}, f"I <think</think>so{CALL}", None, False),
    ({"thinking": True}, "a</think>b</think>", "</think>", False),
    ({"tool_choice": "none"}, "some text<tool_call>", "<tool_call>", False),
    ({"tool_choice": "none", "thinking": True}, "x</think>y", None, False),
    ({"tool_choice": "required"}, "Hm", "Hm", False),
    ({"tool_choice": "required"}, CALL + CALL, None, False),
    ({"tool_choice": "required", "parallel_calls": False}, NOW, None, True),
    (GET_TIME, NOW, None, True),
    (GET_TIME, "<tool_call>get_we", "we", False),
    (GET_TIME | {"thinking": True}, f"a</think>{NOW}", None, True),
    ({"response": "json_object"}, '{"a": [1.5, "</think", null]}', None, True),
    ({"response": "json_object"}, CALL, None, False),
    ({"response": "json_object"}, '{"a": "<tool_call>', "<tool_call>", False),
    ({"response": "json_object"}, '{"a": "</think>', "</think>", False),
    ({"response": "json_object", "tool_choice": "none"}, NOW, NOW, False),
    ({"response": "json_object", "thinking": True}, 'Hm{</think>{"a":1}', None, True),
])  # fmt: skip
def test_every_choice(
    grammars: Grammars, options: dict[str, Any], text: str, bad: str | None, ended: bool
) -> None:
    constraint = begun(grammars, AnswerForm(functions=BOTH, **options))
    assert refused(constraint, text) == bad and constraint.ended == ended


@pytest.mark.parametrize(("key", "value", "bad"), [
    ("city", "", None),
    ("city", "3 <b> </b> {", None),
    ("unit", "C", None),
    ("unit", "K", "K"),
    ("days", "-7", None),
    ("days", "x", "x"),
    ("days", '"3"', '"3"'),
    ("when", "null", None),
    ("when", "[at noon", None),
    ("at", '{"lat": 1.25, "near": {"lat": -2}}', None),
    ("at", '{"near"', "ne"),
    ("at", '{"lat": 1, "near": {"x', "x"),
    ("guess", "", "gu"),
])  # fmt: skip
def test_arguments(grammars: Grammars, key: str, value: str, bad: str | None) -> None:
    """By their types, in any order, each once, and none that is not declared."""
    constraint = begun(grammars, AnswerForm(functions=BOTH))
    found = refused(constraint, f"<tool_call>get_weather<arg_key>{key}</arg_key><arg_value>{value}")
    assert (found or "").startswith(bad or "") and (found is None) == (bad is None)
    if bad is None:
        assert refused(constraint, "</arg_value>") is None
        again = refused(constraint, f"<arg_key>{key}</arg_key>")
        assert again is not None
        complete = begun(grammars, AnswerForm(functions=BOTH))
        city = "<arg_key>city</arg_key><arg_value>x</arg_value>"
        rest = f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" + city * (key != "city")
        assert refused(complete, f"<tool_call>get_weather{rest}</tool_call>") is None
        assert complete.allowed(())[[*ENDS]].all()


def test_more_arguments_than_a_set_has_room_for_come_in_their_order(grammars: Grammars) -> None:
    keys = [f"k{i:02}" for i in range(70)]
    schema = {"type": "object", "properties": {key: {"type": "boolean"} for key in keys},
              "required": keys[3:5]}  # fmt: skip
    form = AnswerForm(functions=(Function("f", schema),))

    def call(*numbers: int) -> str:
        said = (f"<arg_key>{keys[i]}</arg_key><arg_value>true</arg_value>" for i in numbers)
        return f"<tool_call>f{''.join(said)}</tool_call>"

    assert refused(begun(grammars, form), call(0, 3, 4, 69)) is None
    assert refused(begun(grammars, form), call(3)) == "</tool_call>"
    assert refused(begun(grammars, form), call(4)) is not None
    assert refused(begun(grammars, form), call(3, 4, 2)) is not None


def test_parameters_elsewhere_in_their_schema(grammars: Grammars) -> None:
    city = {"type": "object", "properties": {"city": {"$ref": "#/$defs/the%20name"}}}
    parameters = {"$ref": "#/$defs/all", "$defs": {"all": city, "the name": {"type": "string"}}}
    form = AnswerForm(functions=(Function("f", parameters),))
    call = "<tool_call>f<arg_key>city</arg_key><arg_value>3</arg_value></tool_call>"
    assert refused(begun(grammars, form), call) is None
    assert read({"city": "3"}, parameters) == {"city": "3"}


def test_what_may_be_null_besides(grammars: Grammars) -> None:
    parameters = {"properties": {"n": {"type": "integer", "nullable": True}, "s": {
        "type": "string", "nullable": True, "minLength": 2}}}  # fmt: skip
    form = AnswerForm(functions=(Function("f", parameters),))
    call = "<tool_call>f<arg_key>{}</arg_key><arg_value>{}</arg_value></tool_call>"
    for key, text, good in (("n", "null", True), ("n", "nul", False), ("s", "null", True),
                            ("s", "ab", True), ("s", "a", False), ("s", '"a"', False)):  # fmt: skip
        assert (refused(begun(grammars, form), call.format(key, text)) is None) == good, text


def test_functions_that_name_no_arguments(grammars: Grammars) -> None:
    a = "<arg_key>a</arg_key><arg_value>x</arg_value>"
    for parameters in (None, {}, {"type": "object"}, {"type": "object", "properties": {}}):
        form = AnswerForm(functions=(Function("f", parameters),))
        assert refused(begun(grammars, form), f"<tool_call>f{a}") == f"{a}"
        assert refused(begun(grammars, form), "<tool_call>f</tool_call>") is None
    form = AnswerForm(functions=(Function("f", {"additionalProperties": {"type": "string"}}),))
    assert (
        refused(begun(grammars, form), f"<tool_call>f{a}{a.replace('a<', 'b<')}</tool_call>")
        is None
    )


def test_text_that_would_be_read_as_another_value(grammars: Grammars) -> None:
    """Text or a list of numbers: text that begins as a list is a list of numbers."""
    value = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}},
                       {"type": "integer", "minimum": 5}]}  # fmt: skip
    form = AnswerForm(functions=(Function("f", {"properties": {"a": value}}),))
    begin = "<tool_call>f<arg_key>a</arg_key><arg_value>"
    for text, bad in (("x [1", None), ("[1, 2]", None), (" [", " ["), ('["x"', '"'), ("7", None),
                      ("4<", "<"), ('{"a"', None), ("\u00a0[", "[")):  # fmt: skip
        found = refused(begun(grammars, form), f"{begin}{text}</arg_value></tool_call>")
        assert (found or "").startswith(bad or "") and (found is None) == (bad is None), text


def test_it_ends_where_it_may_and_nowhere_else(grammars: Grammars) -> None:
    form = schema_form({"type": "object", "properties": {"a": {"type": "integer"}},
                        "additionalProperties": False}, thinking=True)  # fmt: skip
    constraint = begun(grammars, form)
    for token in ids('x</think>{"a": 1}'):
        mask = constraint.allowed(())
        assert mask.dtype == np.bool_ and not mask[[*ENDS]].any() and not constraint.ended
        constraint.take(token)
    assert np.flatnonzero(constraint.allowed(())).tolist() == sorted(ENDS) and constraint.ended
    free = begun(grammars, AnswerForm(functions=BOTH))
    for token in [None, *ids("Hello"), *ids(CALL)]:
        if token is not None:
            free.take(token)
        outside = token is None or token not in ids(CALL)[:-1]
        assert free.allowed(())[[*ENDS]].all() == free.allowed(())[[*ENDS]].any() == outside
        assert not free.ended
    free.take(ENDS[2])
    assert free.ended and not free.allowed(()).any()
    with pytest.raises(GlmTrtError, match="may not come"):
        free.take(ENDS[0])


@pytest.mark.parametrize("seed", range(8))
def test_drafts_and_what_is_taken_back(grammars: Grammars, seed: int) -> None:
    """Each mask is that of a constraint that has only gone on."""
    random = Random(seed)
    form = AnswerForm(functions=BOTH, thinking=seed % 2 == 0, response="json_object",
                      tool_choice="required" if seed % 4 else "auto")  # fmt: skip
    tokens = drawn(begun(grammars, form), TEXT, ENDS, random, 80)
    expected, plain = [], begun(grammars, form)
    for token in tokens:
        expected.append(plain.allowed(()))
        plain.take(token)
    tried, place = begun(grammars, form), 0
    for _ in range(20):
        drafts = tokens[place : place + random.randint(0, 4)]
        if place + len(drafts) < len(tokens) and not {*drafts} & {*ENDS}:
            np.testing.assert_array_equal(tried.allowed(drafts), expected[place + len(drafts)])
        wrong = int(random.choice(np.flatnonzero(~expected[place]))) if place < len(tokens) else 0
        if random.random() < 0.3:
            assert not tried.allowed([wrong, *drafts]).any()
        for token in tokens[place : place + random.randint(0, 3)]:
            np.testing.assert_array_equal(tried.allowed(()), expected[place])
            tried.take(token)
            place += 1
        if random.random() < 0.4 or place == len(tokens):
            place = random.randint(0, place)
            tried.return_to(place)
    for token in tokens[place:]:
        assert tried.allowed(())[token]
        tried.take(token)
    assert tried.ended == plain.ended


@pytest.mark.parametrize("beyond", [0, 37])
def test_without_end_tokens_an_answer_ends_where_it_is_whole(beyond: int) -> None:
    size = TEXT.get_vocab_size()
    endless = Grammars(TEXT.to_str(), size + beyond, ())
    for form, text, bad in (
        (AnswerForm(response="json_object"), '{"a": [1, 2]}', "{"),
        (AnswerForm(functions=BOTH), f"Let me see.{CALL}", NOW),
        (AnswerForm(functions=BOTH, tool_choice="required", thinking=True), f"x</think>{NOW}", NOW),
        (AnswerForm(functions=BOTH, response="json_object"), NOW, NOW),
        (schema_form({"enum": ["a", "ab"]}), '"ab"', " "),
    ):
        constraint = begun(endless, form)
        for token in ids(text):
            mask = constraint.allowed(())
            assert mask[token] and not mask[size:].any() and not constraint.ended
            assert not mask[[*ENDS]].any()
            constraint.take(token)
        assert constraint.ended and not constraint.allowed(()).any()
        assert refused(constraint, bad) == bad
        with pytest.raises(GlmTrtError, match="may not come"):
            constraint.take(size)  # llguidance's own end
    constraint = begun(endless, AnswerForm(response="json_object"))
    object_ = ids('{"a": 1}')
    assert constraint.allowed(object_[:-1])[object_[-1]] and not constraint.allowed(object_).any()


@pytest.mark.parametrize("schema", [
    True, {"type": "integer"}, {"anyOf": [{"type": "object"}, {"$ref": "#/$defs/n"}],
                                "$defs": {"n": {"enum": ["a", 1.5]}}},
], ids=str)  # fmt: skip
def test_without_end_tokens_a_number_alone_is_refused(grammars: Grammars, schema: Any) -> None:
    assert grammars.constraint(schema_form(schema, strict=False)) is not None
    endless = Grammars(TEXT.to_str(), TEXT.get_vocab_size(), ())
    reason = r"^response_format\.json_schema\.schema: a number could always go on"
    with pytest.raises(GlmTrtError, match=reason):
        endless.constraint(schema_form(schema, strict=False))


SHORT = {
    "type": "object", "additionalProperties": False, "required": ["name", "tags", "n"],
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["x", "yy"]}, "maxItems": 3},
        "more": {"$ref": "#/properties/tags"},
    },
}  # fmt: skip


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=5)])
@pytest.mark.parametrize("kind", ["json", "call"])
def test_a_session_gives_such_answers_with_drafts_too(
    runtime: Runtime, grammars: Grammars, sampling: Sampling, kind: str
) -> None:
    form = schema_form(SHORT)
    if kind == "call":
        form = AnswerForm(
            functions=(Function("f", SHORT),), tool_choice="function", function="f"
        )  # fmt: skip
    found = []
    for drafts in (0, 3):
        session = runtime.session(drafts=drafts)
        options = GenerateOptions(
            400, sampling, eos_token_ids=ENDS, constraint=begun(grammars, form),
            logit_bias={TEXT.token_to_id(mark): 5.0 for mark in MARKS},
        )  # fmt: skip
        request = session.submit(ids("def main():"), options)
        session.run()
        assert request.finish_reason == "stop"
        found.append(request.tokens)
    assert found[0] == found[1]
    if kind == "json":
        value = json.loads(TEXT.decode(found[0], skip_special_tokens=False))
    else:
        _, [(_, arguments)] = calls_in(found[0], TEXT)
        value = read(arguments, SHORT)
    jsonschema.Draft202012Validator(SHORT).validate(value)


def test_tokens_beyond_the_tokenizer_are_never_allowed(grammars: Grammars) -> None:
    size = TEXT.get_vocab_size()
    for vocabulary in (size + 37, size - 5):
        other = Grammars(TEXT.to_str(), vocabulary, ENDS)
        form = AnswerForm(functions=BOTH, tool_choice="none")
        mask, whole = begun(other, form).allowed(()), begun(grammars, form).allowed(())
        assert mask.shape == (vocabulary,) and not mask[size:].any()
        np.testing.assert_array_equal(mask[:size], whole[: len(mask)])
        assert whole.sum() > size - 120  # not the bytes that no character begins with
        assert not whole[[TEXT.token_to_id(name) for name in (*SPECIAL, *MARKS)]].any()
        with pytest.raises(GlmTrtError, match="may not come"):
            begun(other, form).take(size + 3)
        assert not begun(other, form).allowed([size + 3]).any()


@pytest.mark.parametrize(("schema", "good", "bad"), [
    ({"pattern": "^[a-c]+$"}, ["abc"], ["", "abd", "xabc"]),
    ({"pattern": "[0-9]{2}"}, ["a12b", "12"], ["1", "a1b"]),
    ({"pattern": r"^a\$$"}, ["a$"], ["a", "a$$"]),
    ({"pattern": "[$^]"}, ["a^", "$"], ["a"]),
    ({"pattern": r"^\w/\d$"}, ["a/1"], ["é/1", "a/١"]),
    ({"minLength": 2, "maxLength": 3}, ["éé", "abc"], ["a", "abcd"]),
    ({"format": "date", "minLength": 1}, ["2024-02-29"], ["2024-13-01", "24-1-1"]),
    ({"format": "date-time"}, ["2024-02-29T01:02:03Z"], ["2024-02-29", "2024-02-29T25:00:00Z"]),
    ({"format": "ipv4"}, ["1.2.3.255"], ["1.2.3.256", "1.2.3"]),
    ({"format": "email"}, ["a.b@c.de"], ["a@b", "a..b@c.de"]),
    ({"enum": ["a", "b\n", ""]}, ["a", "b\n", ""], ["b", "c"]),
    ({"anyOf": [{"const": "a"}, {"minLength": 4}]}, ["a", "abcd"], ["ab"]),
    ({"allOf": [{"minLength": 2}, {"pattern": "^a"}]}, ["ab"], ["a", "bb"]),
], ids=str)  # fmt: skip
def test_text_of_arguments(
    grammars: Grammars, schema: dict[str, Any], good: Sequence[str], bad: Sequence[str]
) -> None:
    """Raw, so that JSON's quotes and escapes are no part of it."""
    parameters = {"properties": {"a": {"type": "string", **schema}}}
    form = AnswerForm(functions=(Function("f", parameters, strict=True),))
    for text in (*good, *bad):
        call = f"<tool_call>f<arg_key>a</arg_key><arg_value>{text}</arg_value></tool_call>"
        assert (refused(begun(grammars, form), call) is None) == (text in good), text


def test_grammars_are_kept_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(TEXT.to_str(), TEXT.get_vocab_size(), ENDS, kept=2)
    made: list[str] = []
    compile_ = Grammars._compile
    monkeypatch.setattr(
        Grammars, "_compile", lambda self, form: (made.append(form.schema), compile_(self, form))[1]
    )

    def ask(name: str) -> None:
        grammars.constraint(schema_form({"const": name}))

    for name in ("a", "a", "b", "a", "c", "a", "b"):
        ask(name)
    assert [schema["const"] for schema in made] == ["a", "b", "c", "b"]  # type: ignore[index]
    made.clear()
    threads = [threading.Thread(target=ask, args=(f"x{i % 3}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(grammars._kept) == 2 and len(made) >= 3


def test_a_grammar_that_has_met_a_limit_is_made_anew(grammars: Grammars) -> None:
    """What its answers share may be what is full."""
    wide = {"allOf": [{"anyOf": [{"type": "object", "properties": {f"p{k}": {"const": i}}}
                                 for i in range(10)]} for k in range(3)]}  # fmt: skip
    form = schema_form(wide)
    first = begun(grammars, form)
    with pytest.raises(GlmTrtError, match=r"^grammar of the answer: .*Too many items"):
        first.allowed(())
    key = next(reversed(grammars._kept))
    kept = grammars._kept[key]
    assert kept.is_spent
    begun(grammars, form)
    assert grammars._kept[key] is not kept


def test_what_a_tokenizer_lacks_is_named() -> None:
    plain = Grammars(Text.of_files({TINY.name: TINY}, "tiny").tokenizer_json(), 2048, (0,))
    assert plain.constraint(AnswerForm()) is None
    assert plain.constraint(AnswerForm(response="json_object")) is not None
    for form in (AnswerForm(functions=(TIME,)), AnswerForm(response="json_object", thinking=True)):
        with pytest.raises(GlmTrtError, match="the tokenizer has no token <"):
            plain.constraint(form)
    with pytest.raises(GlmTrtError, match="no grammars with this tokenizer"):
        Grammars(TINY.read_text(), 2048, (5000,))


def test_it_needs_neither_torch_nor_transformers() -> None:
    absent = "{'torch', 'transformers'} & {*sys.modules}"
    code = f"import sys, glm_trt.engines.serve.grammar; print({absent})"
    done = subprocess.run(python("-c", code), capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
