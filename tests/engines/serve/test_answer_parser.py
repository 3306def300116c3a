"""Reasoning, content and calls while they are generated: against the package `renderers`, and by
hand.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from answer_fuzz import PROPERTIES, SCHEMA, TOOLS, Fuzz, calls_of
from glm_text import TINY, files_of, glm_text

from glm_trt.engines.python.text import Text
from glm_trt.engines.serve.answer_parser import (
    AnswerParser,
    BadCall,
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Piece,
    Reasoning,
    opens_reasoning,
)
from glm_trt.engines.serve.argument_types import Parameters
from glm_trt.model.errors import GlmTrtError


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Fuzz:
    place = tmp_path_factory.mktemp("glm")
    return Fuzz(glm_text(place), place)


@pytest.fixture(scope="module")
def glm(fuzz: Fuzz) -> Text:
    return fuzz.text


# Every answer cut at every place, which is what is known of it by then.
@pytest.mark.parametrize(
    "answers", [range(300), pytest.param(range(300, 5300), marks=pytest.mark.slow)]
)
def test_the_second_parser_agrees(fuzz: Fuzz, answers: range) -> None:
    kinds: set[Any] = set()
    for seed in answers:
        draw = random.Random(seed)
        ids = fuzz.answer(draw)
        thinking, tools = draw.random() < 0.7, TOOLS if draw.random() < 0.8 else []
        for end in range(len(ids) + 1):
            try:
                pieces = fuzz.compare(ids[:end], thinking, tools)
            except AssertionError as error:
                raise AssertionError((seed, end, ids[:end], thinking)) from error
            kinds |= {getattr(piece, "fault", type(piece)) for piece in pieces}
    everything = {Reasoning, Content, CallBegin, CallArguments, None}
    assert kinds == everything | {"unclosed", "malformed", "no name", "unknown tool"}


def parsed(parser: AnswerParser, ids: list[int]) -> list[Piece]:
    return [piece for token in ids for piece in parser.feed(token)] + parser.end()


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of a kind as one piece."""
    whole: list[Piece] = []
    for piece in pieces:
        last = whole[-1] if whole else None
        if isinstance(piece, Reasoning | Content) and type(last) is type(piece):
            whole[-1] = type(piece)(last.text + piece.text)  # type: ignore[union-attr]
        elif isinstance(piece, CallArguments) and isinstance(last, CallArguments):
            whole[-1] = CallArguments(piece.index, last.text + piece.text)
        else:
            whole.append(piece)
    return whole


def read(glm: Text, answer: str, **options: Any) -> list[Piece]:
    return joined(parsed(AnswerParser(glm, **{"thinking": True, **options}), glm.encode(answer)))


def call(name: str, **arguments: str) -> str:
    inner = "".join(
        f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>"
        for key, value in arguments.items()
    )
    return f"<tool_call>{name}{inner}</tool_call>"


def test_an_answer(glm: Text) -> None:
    answer = (
        "\nLook it up.\n</think>\nOne moment … \n"
        + call("get", text="Köln", whole="2", maybe="null")
        + "\n"
        + call("bare")
        + "\nThen 🙂\n"
    )
    assert read(glm, answer, tools=TOOLS) == [
        Reasoning("\nLook it up."),
        Content("\nOne moment …"),  # without the white space, as a call follows
        CallBegin(0, "get"),
        CallArguments(0, '{"text": "Köln", "whole": 2, "maybe": null}'),
        CallEnd(0, None),
        CallBegin(1, "bare"),
        CallArguments(1, "{}"),
        CallEnd(1, None),
        Content(" \n\n\nThen 🙂"),  # which content follows after all
    ]


def test_pieces_come_as_soon_as_they_are_sure(glm: Text) -> None:
    parser = AnswerParser(glm, TOOLS, thinking=False)

    def fed(text: str) -> list[Piece]:
        return [piece for token in glm.encode(text) for piece in parser.feed(token)]

    assert joined(fed("Well \n")) == [Content("Well")]  # the white space may be the last
    assert joined(fed("now")) == [Content(" \nnow")]
    assert fed("<tool_call>get") == []  # the name may go on
    assert fed("<arg_key>") == [CallBegin(0, "get")]
    assert fed("text</arg_key>") == []
    assert fed("<arg_value>") == [CallArguments(0, '{"text": "')]
    assert joined(fed('a "b"')) == [CallArguments(0, 'a \\"b\\"')]
    assert fed("</arg_value>") == [CallArguments(0, '"')]
    assert fed("<arg_key>whole</arg_key><arg_value>1") == []  # 1x would be no number
    assert fed("2</arg_value>") == [CallArguments(0, ', "whole": 12')]
    assert fed("</tool_call>") == [CallArguments(0, "}"), CallEnd(0, None)]
    assert parser.end() == []


def test_characters_come_whole(glm: Text) -> None:
    answer = "🙂 é</think>日本" + call("get", text="🙂🙂", object='{"a": "🙂"}')
    ids = glm.encode(answer)
    parser = AnswerParser(glm, TOOLS, thinking=True)
    pieces = [piece for token in ids for piece in parser.feed(token)]
    assert "\ufffd" not in repr(pieces)
    # Cut within a character, it is one that cannot be read.
    cut = ids[: next(i for i in range(len(ids)) if glm.token_bytes(ids[i])[:1] == b"\xf0") + 1]
    assert parsed(AnswerParser(glm, thinking=True), cut) == [Reasoning("\ufffd")]


def test_where_it_is(glm: Text) -> None:
    parser = AnswerParser(glm, thinking=True)
    seen = []
    for token in glm.encode("a</think><think></think>x<tool_call><think></tool_call><think>"):
        parser.feed(token)
        seen.append(parser.reasons)
    assert seen == [True, False, True, False, False, False, False, False, True]


def test_what_is_of_content(glm: Text) -> None:
    parser = AnswerParser(glm, thinking=True)
    said = []
    for token in glm.encode("a</think>x<tool_call>bare</tool_call>y", with_prefix=False):
        said += [token] if parser.is_content(token) else []
        parser.feed(token)
    assert glm.decode(said) == "xy"


def test_calls_end_reasoning(glm: Text) -> None:
    assert read(glm, "so" + call("bare"), tools=TOOLS) == [
        Reasoning("so"),
        CallBegin(0, "bare"),
        CallArguments(0, "{}"),
        CallEnd(0, None),
    ]


def test_calls_that_are_broken(glm: Text) -> None:
    def of(answer: str) -> list[Piece]:
        return read(glm, answer, tools=TOOLS, thinking=False)

    assert of("<tool_call>ge") == [BadCall("ge", "unclosed")]
    assert of("<tool_call>get<arg_key>te") == [CallBegin(0, "get"), CallEnd(0, "unclosed")]
    # A client that carried this out would remove another file than was meant.
    cut = "<tool_call>get<arg_key>text</arg_key><arg_value>/tmp"
    for end, fault in (("", "unclosed"), ("</tool_call>", "malformed")):
        assert of(cut + end) == [
            CallBegin(0, "get"),
            CallArguments(0, '{"text": "/tmp'),
            CallEnd(0, fault),
        ]
    unknown = call("rm", text="/")
    assert of(unknown + call("bare")) == [
        BadCall("rm<arg_key>text</arg_key><arg_value>/</arg_value>", "unknown tool"),
        CallBegin(0, "bare"),  # which is the first that is one
        CallArguments(0, "{}"),
        CallEnd(0, None),
    ]
    assert of(call("", text="x"))[0].fault == "no name"  # type: ignore[union-attr]
    assert of("<tool_call>get<tool_call>bare</tool_call>") == [
        BadCall("get<tool_call>bare", "unknown tool")
    ]
    # Without tools, any name is one's.
    assert read(glm, call("rm"), thinking=False)[0] == CallBegin(0, "rm")


def test_marks_out_of_place(glm: Text) -> None:
    def of(answer: str, thinking: bool) -> list[Piece]:
        return read(glm, answer, thinking=thinking)

    assert of("a</think>b</think>c<think>d", True) == [
        Reasoning("a"), Content("bc"), Reasoning("d")
    ]  # fmt: skip
    assert of("<think>a</think>b", True) == of("<think>a</think>b", False)
    assert of("a</tool_call>b<arg_key>", False) == [Content("a</tool_call>b<arg_key>")]
    written = "a <tool_call b>"  # spelt, not the token
    assert of(written, False) == [Content(written)]


def test_white_space(glm: Text) -> None:
    def of(answer: str) -> list[Piece]:
        return read(glm, answer, thinking=False)

    bare = [CallBegin(0, "bare"), CallArguments(0, "{}"), CallEnd(0, None)]
    assert of(" \n") == [Content(" \n")]
    assert of(" a \n") == [Content(" a \n")]
    assert of(" \n" + call("bare") + "\n") == bare
    assert of("\n" + call("bare") + "\na\n") == [*bare, Content("\na")]


def test_calls_as_content(glm: Text) -> None:
    answer = "a</think>" + call("get", text="x") + "\n"
    expected = [Reasoning("a"), Content(call("get", text="x") + "\n")]
    assert read(glm, answer, calls=False) == expected


@pytest.mark.parametrize("cut", range(1, 9))
def test_stop_strings(glm: Text, cut: int) -> None:
    def of(ids: list[int], stop: tuple[str, ...]) -> tuple[list[Piece], str | None]:
        parser = AnswerParser(glm, TOOLS, thinking=True, stop=stop)
        pieces = [piece for token in ids for piece in parser.feed(token)]
        rest = parser.end()
        assert not (parser.stopped and rest)  # nothing is left then
        return joined(pieces + rest), parser.stop

    # Of a token for each letter, or of several.
    answer = "one END two"
    ids = [i for k in range(0, len(answer), cut) for i in glm.encode(answer[k : k + cut])]
    think = [*glm.encode("x</think>"), *ids]
    assert of(ids, ("END",)) == ([Reasoning("one")], "END")
    assert of(think, ("END", "never")) == (
        [
            Reasoning("x"),
            Content("one "),
        ],
        "END",
    )
    assert of(think, ("ENDE",)) == ([Reasoning("x"), Content("one END two")], None)
    assert of(think, ("one",)) == ([Reasoning("x")], "one")
    # Not from one to the other, and not in a call.
    assert of(think, ("xone",)) == ([Reasoning("x"), Content("one END two")], None)
    inside = [*glm.encode("</think>" + call("get", text="END")), *ids]
    pieces, stop = of(inside, ("END",))
    assert pieces[-1] == Content("one") and stop == "END"
    assert calls_of(pieces) == [("get", '{"text": "END"}', None)]


def test_what_may_begin_a_stop_string_is_held_back(glm: Text) -> None:
    parser = AnswerParser(glm, thinking=False, stop=("ab",))
    assert parser.feed(glm.encode("a")[0]) == []
    assert parser.feed(glm.encode("c")[0]) == [Content("ac")]
    assert parser.feed(glm.encode("a")[0]) == []
    assert parser.feed(glm.token_id("<tool_call>") or 0) == [Content("a")]
    with pytest.raises(GlmTrtError, match="not empty"):
        AnswerParser(glm, thinking=False, stop=("",))


def test_a_tokenizer_without_marks() -> None:
    text = Text.of_files(files_of(TINY), "tiny")
    answer = "a</think>" + call("get", text="x")
    assert read(text, answer) == [Content(answer)]
    assert not opens_reasoning(text, text.encode("<think>"))


def test_whether_an_answer_begins_as_reasoning(glm: Text) -> None:
    messages = [{"role": "user", "content": "<think>"}]
    assert opens_reasoning(glm, glm.chat(messages))
    assert not opens_reasoning(glm, glm.chat(messages, enable_thinking=False))
    assert opens_reasoning(glm, glm.encode("<think> \n"))
    assert not opens_reasoning(glm, glm.encode("<think>x"))
    assert not opens_reasoning(glm, [])


@pytest.mark.parametrize(
    "name, written, expected",
    [
        ("text", "5", '"5"'),
        ("text", " a\n", '" a\\n"'),
        ("only text", "null", '"null"'),
        ("whole", " 5\n", "5"),
        ("whole", "5.0", "5.0"),
        ("whole", "5.5", '"5.5"'),
        ("whole", "true", '"true"'),
        ("whole", "9" * 40, "9" * 40),
        ("number", "1.10", "1.10"),
        ("number", "1e400", "1e400"),
        ("number", "NaN", '"NaN"'),
        ("number", "05", '"05"'),
        ("flag", "true", "true"),
        ("flag", "True", '"True"'),
        ("flag", "1", '"1"'),
        ("list", '["a", 1]', '["a", 1]'),
        ("list", "[1, NaN]", '"[1, NaN]"'),
        ("list", "[" * 100_000, '"' + "[" * 100_000 + '"'),
        ("object", '{"a": {"b": null}}', '{"a": {"b": null}}'),
        ("object", "[]", '"[]"'),
        ("nothing", "null", "null"),
        ("nothing", "", '""'),
        ("maybe", "null", "null"),
        ("maybe", "5", '"5"'),
        ("one of", "[5]", "[5]"),
        ("one of", "5", "5"),
        ("one of", "x", '"x"'),
        ("either", "5", "5"),
        ("either", "five", '"five"'),
        ("choice", "1", '"1"'),
        ("referred", "5", '"5"'),
        ("anything", "5", "5"),
        ("anything", "Berlin", '"Berlin"'),
        ("not declared", '{"a": 1}', '{"a": 1}'),
        ("nullable", "null", "null"),
        ("nullable", "5", '"5"'),
        ("all", "5", "5"),
        ("all", "5.5", '"5.5"'),
        ("constant", "7", "7"),
        ("constant", "x", '"x"'),
        ("recursive", "[[]]", "[[]]"),
        ("lost", "5", "5"),
        ("contradictory", "5", "5"),
    ],
)
def test_values_by_their_declared_types(name: str, written: str, expected: str) -> None:
    more: dict[str, Any] = {
        "nullable": {"type": "string", "nullable": True},
        "all": {"allOf": [{"type": "number"}, {"type": ["integer", "string"]}]},
        "constant": {"const": 7},
        "recursive": {"$ref": "#/properties/recursive"},
        "lost": {"$ref": "other.json#/x"},
        "contradictory": {"allOf": [{"type": "string"}, {"type": "null"}]},
    }
    parameters = Parameters({**SCHEMA, "properties": PROPERTIES | more})
    assert parameters.of(name).to_json(written) == expected
    json.loads(expected)


def test_types_of_other_properties() -> None:
    parameters = Parameters({"properties": {"a": {}}, "additionalProperties": {"type": "string"}})
    assert parameters.of("b").is_text and not parameters.of("a").is_text
    assert not Parameters(None).of("b").is_text
    assert not Parameters({"additionalProperties": False}).of("b").is_text
