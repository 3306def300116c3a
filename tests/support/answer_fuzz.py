"""Answers of any shape, and what the package `renderers` makes of them.

Where ours differs on purpose, as `compare` allows for:

- Special tokens are not shown in text. Marks of reasoning count without thinking too.
- White space in front of content stays where a call follows it, as it was given by then.
- Strings are as they were written: a file that is written keeps its last line break. `renderers`
  strips them.
- A value that is JSON, but of no type that is declared, is a string: "5.5" is no integer. So is
  what JSON has not, as NaN. What may only be a string, by a reference or a list of values, is one
  as it stands.
- A call without an end, or of no tool that was offered, is told apart as a fault of its own. That a
  string came where none is declared is none.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import jsonschema
from glm_text import oracle_tokenizer, renderers

from glm_trt.engines.python.text import Text
from glm_trt.engines.serve.answer_parser import (
    CALL,
    CALL_END,
    CALL_MARKS,
    KEY,
    KEY_END,
    MALFORMED,
    NO_NAME,
    THINK_END,
    THINK_MARKS,
    UNCLOSED,
    UNKNOWN_TOOL,
    VALUE,
    VALUE_END,
    AnswerParser,
    BadCall,
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Piece,
    Reasoning,
)  # fmt: skip

PROPERTIES: dict[str, Any] = {
    "text": {"type": "string"},
    "only text": {"type": ["string"]},
    "whole": {"type": "integer"},
    "number": {"type": "number"},
    "flag": {"type": "boolean"},
    "list": {"type": "array", "items": {"type": "string"}},
    "object": {"type": "object"},
    "nothing": {"type": "null"},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "one of": {"oneOf": [{"type": "integer"}, {"type": "array"}]},
    "either": {"type": ["integer", "string"]},
    "choice": {"enum": ["1", "two"]},
    "referred": {"$ref": "#/$defs/Level"},
    "anything": {},
}
DEFINITIONS = {"Level": {"type": "string", "enum": ["low", "high", "5"]}}
SCHEMA = {"type": "object", "properties": PROPERTIES, "$defs": DEFINITIONS}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get", "parameters": SCHEMA}},
    {"name": "plain.name", "parameters": SCHEMA},
    {"type": "function", "function": {"name": "bare"}},
]
WRITTEN = (
    "Berlin", "5", "-7", "2.50", "3.0", "1e400", "true", "null", '"quoted"', "[1, 2]",
    '["a", "é🙂"]',
    '{"a": {"b": [null, 1.10]}}', "{}", "", " padded\n", "\n", "{broken", "NaN", "[Infinity]",
    'say "hi" \\ \t\x01', "日本語 🙂", "def f():\n    return [x for x in y]\n", "low", "1", "00",
    "<tool_call", "</arg_value", "9" * 30,
)  # fmt: skip
SAID = (
    "Hello",
    " world",
    "\n\n",
    "  ",
    "naïve 🙂",
    "x = {'a': 1}\n",
    "<think",
    "stop",
    "日本",
    "\u00a0",
)


class Fuzz:
    """Makes answers of token IDs, and knows what the second implementation says of them."""

    def __init__(self, text: Text, place: Path) -> None:
        renderers()
        from renderers import parsing

        self._parsing, self.text = parsing, text
        self._tokenizer = oracle_tokenizer(place)
        self.ids = {mark: text.token_id(mark) for mark in (*THINK_MARKS, *CALL_MARKS)}
        self._pieces = {said: text.encode(said, False) for said in (*SAID, *WRITTEN, *PROPERTIES)}
        stops = {text.token_id(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")}
        self._any = [i for i in range(2048) if i not in stops]

    def answer(self, draw: random.Random) -> list[int]:
        """Some are whole, some are whole ones with faults, some are marks as they come."""
        shape = draw.random()
        if shape < 0.2:
            return self._soup(draw)
        ids = self._whole(draw)
        for _ in range(draw.choice([1, 1, 2, 4]) if shape < 0.6 else 0):
            place = draw.randrange(len(ids) + 1)
            change = draw.randrange(4)
            if change == 0:
                del ids[place : place + 1]
            elif change == 1:
                ids.insert(place, draw.choice([*self.ids.values(), draw.choice(self._any)]))
            elif change == 2:
                ids[place:place] = ids[place : place + 3]
            else:
                del ids[place:]
        return ids

    def _soup(self, draw: random.Random) -> list[int]:
        ids = []
        for _ in range(draw.randrange(1, 25)):
            kind = draw.random()
            if kind < 0.6:
                ids.append(draw.choice(list(self.ids.values())))
            elif kind < 0.8:
                ids += self._pieces[draw.choice(SAID)]
            else:
                ids += draw.choices(self._any, k=draw.randrange(1, 3))  # parts of characters too
        return ids

    def _whole(self, draw: random.Random) -> list[int]:
        ids = self._said(draw)
        if draw.random() < 0.8:
            ids += [self.ids[THINK_END], *self._said(draw)]
        for _ in range(draw.choice([0, 1, 1, 2, 3])):
            ids += self._call(draw)
            if draw.random() < 0.2:
                ids += self._said(draw)
        return ids

    def _said(self, draw: random.Random) -> list[int]:
        return [i for said in draw.choices(SAID, k=draw.randrange(4)) for i in self._pieces[said]]

    def _call(self, draw: random.Random) -> list[int]:
        name = draw.choice(["get", "get", "get", "plain.name", "bare", " get\n", "unknown", ""])
        ids = [self.ids[CALL], *self.text.encode(name, False)]
        for _ in range(draw.choice([0, 1, 2, 4])):
            key = draw.choice([*PROPERTIES, "other"])
            written = draw.choice(WRITTEN)
            between = self._pieces[draw.choice(["\n\n", "stop"])] if draw.random() < 0.1 else []
            ids += [self.ids[KEY], *self.text.encode(key, False), self.ids[KEY_END], *between,
                    self.ids[VALUE], *self.text.encode(written, False), self.ids[VALUE_END],
                    *between]  # fmt: skip
        return [*ids, self.ids[CALL_END]]

    def oracle(self, ids: list[int], thinking: bool, tools: list[dict[str, Any]]) -> Any:
        """What `renderers` makes of an answer: as GLM51Renderer.parse_response, but that marks of
        reasoning count without thinking too.
        """
        of = {name.strip("<>").replace("/", "end_"): i for name, i in self.ids.items()}
        return self._parsing.parse_glm(
            _WithoutSpecial(self._tokenizer), list(ids), stop_ids=set(), tools=tools or None,
            prefilled_thinking=thinking, think_id=of["think"], think_end_id=of["end_think"],
            tool_call_id=of["tool_call"], tool_call_end_id=of["end_tool_call"],
            arg_key_id=of["arg_key"], arg_key_end_id=of["end_arg_key"],
            arg_value_id=of["arg_value"], arg_value_end_id=of["end_arg_value"],
        )  # fmt: skip

    def parsed(self, ids: list[int], thinking: bool, tools: list[dict[str, Any]]) -> list[Piece]:
        """What ours makes of it."""
        parser = AnswerParser(self.text, tools, thinking=thinking)
        return [piece for token in ids for piece in parser.feed(token)] + parser.end()

    def compare(self, ids: list[int], thinking: bool, tools: list[dict[str, Any]]) -> list[Piece]:
        """Assert that both say the same, but for what is meant to differ."""
        pieces, expected = self.parsed(ids, thinking, tools), self.oracle(ids, thinking, tools)
        reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
        content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
        assert reasoning == (expected.reasoning_content or "")
        if expected.tool_calls:  # white space in front was given before the call was seen
            assert content.strip() == expected.content
            assert content == content.rstrip()
        else:
            assert content == expected.content
        calls = calls_of(pieces)
        assert len(calls) == len(expected.tool_calls)
        for call, other in zip(calls, expected.tool_calls, strict=True):
            self._compare_call(call, other, tools)
        return pieces

    def _compare_call(
        self, call: BadCall | tuple[str, str, str | None], other: Any, tools: list[dict[str, Any]]
    ) -> None:
        status = str(other.status)
        if isinstance(call, BadCall):
            fault = {"unclosed_block": UNCLOSED, "missing_name": NO_NAME}.get(status, UNKNOWN_TOOL)
            assert (call.text, call.fault) == (other.raw, fault)
            assert status in ("unclosed_block", "missing_name", "unknown_tool")
            return
        name, written, fault = call
        if status == "unclosed_block":
            assert fault == UNCLOSED and other.raw.lstrip().startswith(name)
            assert not is_json(written)
        elif status == "malformed_structure":
            assert (name, fault) == (other.name, MALFORMED)
            assert not is_json(written)
            compare_arguments(read_partly(written), other.arguments, name, tools)
        else:
            assert status in ("ok", "invalid_json")  # that is a string where none is declared
            assert (name, fault) == (other.name, None)
            compare_arguments(json.loads(written), other.arguments, name, tools)


class _WithoutSpecial:
    """Ours leaves tokens that are special out of the text, as TextStream does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def calls_of(pieces: list[Piece]) -> list[BadCall | tuple[str, str, str | None]]:
    """Calls in their order: those that begin, as name, arguments and fault."""
    found: list[Any] = []
    count = 0
    for piece in pieces:
        if isinstance(piece, BadCall):
            found.append(piece)
        elif isinstance(piece, CallBegin):
            assert piece.index == count  # indices without a gap
            count += 1
            found.append((piece.name, "", "open"))
        elif isinstance(piece, CallArguments | CallEnd):
            name, written, state = found[-1]
            assert piece.index == count - 1 and state == "open"
            more = piece.text if isinstance(piece, CallArguments) else ""
            found[-1] = (name, written + more, "open" if more else piece.fault)  # type: ignore[union-attr]
    return found


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def read_partly(written: str) -> dict[str, Any]:
    """The arguments that had come when the call ended too early."""
    objects: list[list[tuple[str, Any]]] = []  # the outermost ends last

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        objects.append(pairs)
        return dict(pairs)

    for rest in ("}", '"}', "{}"):
        if is_json(written + rest):
            json.loads(written + rest, object_pairs_hook=keep)
            # A text value is given before its end is seen, so that it may be no argument yet.
            return dict(objects[-1][:-1] if rest == '"}' else objects[-1])
    raise AssertionError(f"no beginning of a JSON object: {written!r}")


def compare_arguments(
    ours: dict[str, Any], theirs: dict[str, Any], name: str, tools: list[Any]
) -> None:
    assert set(ours) == set(theirs)
    properties = PROPERTIES if tools and name != "bare" else {}
    for key, value in theirs.items():
        compare_value(ours[key], value, {**properties.get(key, {}), "$defs": DEFINITIONS})


def compare_value(ours: Any, theirs: Any, schema: dict[str, Any]) -> None:
    """Both are the same, or differ as they are meant to."""
    if json.dumps(ours) == json.dumps(theirs) and type(ours) is type(theirs):
        return
    assert isinstance(ours, str), (ours, theirs)
    if isinstance(theirs, str) and ours.strip() == theirs:
        return  # a string is as it was written, with the white space around it
    assert json.dumps(json.loads(ours.strip())) == json.dumps(theirs), (ours, theirs)
    fits = jsonschema.Draft202012Validator(schema).is_valid(theirs)
    quoted = isinstance(theirs, str) and not jsonschema.Draft202012Validator(schema).is_valid(5)
    assert quoted or not fits or has_no_json(theirs), (ours, theirs, schema)


def has_no_json(value: Any) -> bool:
    """Whether there is a number in it that JSON has not."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and any(has_no_json(item) for item in value)
