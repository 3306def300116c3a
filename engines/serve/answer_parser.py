"""An answer of GLM as it is generated: what is reasoning, what is content, what calls a tool.

    reasoning</think>content<tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>

One state machine over token IDs, so that only the tokens themselves are marks: text that spells
"<tool_call>" is text. It goes from state to state as follows; any other mark is text where it
stands.

    reasoning --</think>--> content, --<tool_call>--> call (a call ends open reasoning)
    content --<think>--> reasoning, --<tool_call>--> call
    call --</tool_call>--> content

<think> in reasoning and </think> in content are left out.

In a call, the name reaches to the first <arg_key>. What stands between </arg_key> and <arg_value>,
or </arg_value> and <arg_key>, is left out. Names and keys lose the white space around them; a key
that comes twice is in the JSON twice, of which readers take the last.

White space at the end of reasoning is left out. So is that at both ends of content in an answer
with a call; but where content came first, what is in front of it was given by then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm_trt.engines.python.stopping import StopStrings
from glm_trt.engines.python.text import Text, TextStream
from glm_trt.engines.serve.argument_types import ArgumentType, Parameters, parameters_of

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
THINK_MARKS = (THINK, THINK_END)
CALL_MARKS = (CALL, CALL_END, KEY, KEY_END, VALUE, VALUE_END)
# What may be wrong with a call.
UNCLOSED, MALFORMED = "unclosed", "malformed"
NO_NAME, UNKNOWN_TOOL = "no name", "unknown tool"


@dataclass(frozen=True)
class Reasoning:
    """Text of the model's reasoning."""

    text: str


@dataclass(frozen=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A call, the `index`-th of the answer from 0 on, of a tool that was offered."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of a call's arguments: together the text of a JSON object."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """The end of a call.

    `fault` is None, or why it is not to be carried out: "unclosed" (the answer ended in it) or
    "malformed" (a key or a value without its end). Then its arguments are no whole JSON object.
    """

    index: int
    fault: str | None


@dataclass(frozen=True)
class BadCall:
    """What would be a call, but of no tool that was offered: `text` is what stands in it.

    `fault` is "unknown tool", "no name", or "unclosed" where the answer ended in its name.
    """

    text: str
    fault: str


Piece = Reasoning | Content | CallBegin | CallArguments | CallEnd | BadCall


def opens_reasoning(text: Text, prompt: Sequence[int]) -> bool:
    """Whether an answer to `prompt` begins as reasoning: the prompt ends with <think>."""
    think = text.token_id(THINK)
    for token in reversed(prompt):
        if token == think:
            return True
        if text.token_bytes(token).strip():
            return False
    return False


class AnswerParser:
    """Splits one answer.

    Parameters
    ----------
    text : the tokenizer. Without GLM's marks in it, everything is content.
    tools : those offered, with their JSON Schemas; without any, each name is a tool's.
    thinking : whether the answer begins as reasoning; see `opens_reasoning`.
    stop : texts at which the answer ends; they are looked for in reasoning and content, not across
        from one to the other and not in calls. Text that may begin one is held back.
    calls : look for calls; otherwise their marks are content.

    Attributes
    ----------
    stop : the stop string that was found, when all before it is given; what is fed from then on is
        left out. None until then.
    """

    def __init__(
        self,
        text: Text,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        thinking: bool,
        stop: tuple[str, ...] = (),
        calls: bool = True,
    ) -> None:
        self.stop: str | None = None
        self._text = text
        self._tools = parameters_of(tools) if tools else None
        self._marks = _marks(text, THINK_MARKS) | (_marks(text, CALL_MARKS) if calls else {})
        self._reasoning = _Channel(Reasoning, text, stop)
        self._content = _Channel(Content, text, stop)
        reasons = thinking and THINK in self._marks.values()
        self._channel = self._reasoning if reasons else self._content
        self._call: _Call | None = None
        self._begun = 0  # calls that have an index
        self._any_call = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.stop is not None

    @property
    def reasons(self) -> bool:
        """Whether it is in reasoning: the next token belongs there, unless it is a mark."""
        return self._call is None and self._channel is self._reasoning

    def is_content(self, token_id: int) -> bool:
        """Whether `token_id` would be one of content: no mark, and not in reasoning or a call."""
        is_free = self._call is None and not self.stopped and token_id not in self._marks
        return is_free and self._channel is self._content

    def feed(self, token_id: int) -> list[Piece]:
        """The pieces that `token_id` completes."""
        if self.stopped:
            return []
        mark = self._marks.get(token_id)
        if self._call is not None:
            if mark != CALL_END:
                return self._call.feed(token_id, mark)
            return self._end_call(closed=True)
        if mark == CALL:
            return self._begin_call()
        if mark in THINK_MARKS:
            return self._go(self._reasoning if mark == THINK else self._content)
        return self._watched(self._channel.feed(token_id))

    def end(self) -> list[Piece]:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return []
        if self._call is not None:
            return self._end_call(closed=False)
        pieces = self._watched(self._channel.leave())
        return pieces + self._content.end(with_space=not self._any_call)

    def _begin_call(self) -> list[Piece]:
        pieces = self._go(self._content)
        if self.stopped:
            return pieces
        self._any_call = True
        self._content.call_follows()
        self._call = _Call(self._text, self._tools, self._begun)
        return pieces

    def _end_call(self, closed: bool) -> list[Piece]:
        call, self._call = self._call, None
        if call is None:
            return []
        pieces = call.end(closed)
        self._begun += call.has_begun
        return pieces

    def _go(self, channel: _Channel) -> list[Piece]:
        """Leave the channel for another."""
        pieces = self._watched(self._channel.leave())
        self._channel = channel
        return pieces

    def _watched(self, pieces: list[Piece]) -> list[Piece]:
        self.stop = self._channel.stop
        if not self.stopped:
            return pieces
        return pieces + self._content.end(with_space=not self._any_call)


class _Channel:
    """Text of reasoning or content, in runs between marks."""

    def __init__(self, piece: Callable[[str], Piece], text: Text, stop: tuple[str, ...]) -> None:
        self._piece, self._text, self._stop = piece, text, stop
        self._stream: TextStream | None = None
        self._stops = StopStrings(stop)
        self._space = ""  # white space that may be the last, and is left out then
        self._is_empty = True

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return self._stops.stop

    def feed(self, token_id: int) -> list[Piece]:
        """One more token of it."""
        if self._stream is None:
            self._stream = self._text.stream()
        return self._given(self._stops.feed(self._stream.feed(token_id)))

    def leave(self) -> list[Piece]:
        """The end of a run: a stop string in the next begins anew."""
        text = ""
        if self._stream is not None:
            text = self._stops.feed(self._stream.rest())
            self._stream = None
        if not self._stops.found:
            text += self._stops.rest()
        return self._given(text)

    def call_follows(self) -> None:
        """White space in front of a call alone is no content."""
        if self._is_empty:
            self._space = ""

    def end(self, with_space: bool) -> list[Piece]:
        """What is left of it."""
        space, self._space = self._space, ""
        return [self._piece(space)] if space and with_space else []

    def _given(self, text: str) -> list[Piece]:
        text = self._space + text
        sure = text.rstrip()
        self._space = text[len(sure) :]
        self._is_empty = self._is_empty and not sure
        return [self._piece(sure)] if sure else []


class _Call:
    """One call, from behind <tool_call> on.

    Parameters
    ----------
    tools : the parameters of those offered; None if any name is one.
    index : which call it is, if it is one.
    """

    def __init__(self, text: Text, tools: Mapping[str, Parameters] | None, index: int) -> None:
        self._text, self._tools, self._index = text, tools, index
        self._ids: list[int] = []
        self._waits_for = KEY
        self._in_name = True
        self._part = _Part(text)
        self._name, self._fault = "", NO_NAME
        self._parameters = Parameters(None)
        self._key = ""
        self._type = ArgumentType()
        self._separator = "{"
        self.has_begun = False  # it has an index

    def feed(self, token_id: int, mark: str | None) -> list[Piece]:
        """One more token of it."""
        self._ids.append(token_id)
        if mark != self._waits_for:
            text = self._part.feed(token_id)
            return self._argument(_escaped(text)) if self._is_text else []
        if mark == KEY:
            pieces = self._begin() if self._in_name else []
            self._wait_for(KEY_END)
            return pieces
        if mark == KEY_END:
            self._key = self._part.whole().strip()
            self._wait_for(VALUE)
            return []
        if mark == VALUE:
            self._wait_for(VALUE_END)
            self._type = self._parameters.of(self._key)
            return self._argument(self._before_value()) if self._type.is_text else []
        is_text, pieces = self._is_text, []
        if is_text:
            pieces = self._argument(_escaped(self._part.rest()) + '"')
        else:
            pieces = self._argument(self._before_value() + self._type.to_json(self._part.whole()))
        self._separator = ", "
        self._wait_for(KEY)
        return pieces

    def end(self, closed: bool) -> list[Piece]:
        """The end of it, by its mark or with the answer."""
        pieces: list[Piece] = self._begin() if self._in_name and closed else []
        if not self.has_begun:
            return [BadCall(self._text.decode(self._ids), self._fault if closed else UNCLOSED)]
        fault: str | None = UNCLOSED
        if closed:
            fault = None if self._waits_for == KEY else MALFORMED
        if fault is None:
            pieces += self._argument("{}" if self._separator == "{" else "}")
        return [*pieces, CallEnd(self._index, fault)]

    @property
    def _is_text(self) -> bool:
        """Whether it is in a value that is given as it comes."""
        return self._waits_for == VALUE_END and self._type.is_text

    def _begin(self) -> list[Piece]:
        """The name is whole."""
        self._in_name = False
        self._name = self._part.whole().strip()
        if self._name and self._tools is not None and self._name not in self._tools:
            self._fault = UNKNOWN_TOOL
            return []
        if not self._name:
            return []
        self.has_begun = True
        if self._tools is not None:
            self._parameters = self._tools[self._name]
        return [CallBegin(self._index, self._name)]

    def _wait_for(self, mark: str) -> None:
        self._waits_for, self._part = mark, _Part(self._text)

    def _before_value(self) -> str:
        quote = '"' if self._type.is_text else ""
        return f"{self._separator}{json.dumps(self._key, ensure_ascii=False)}: {quote}"

    def _argument(self, text: str) -> list[Piece]:
        return [CallArguments(self._index, text)] if text and self.has_begun else []


class _Part:
    """Text between two marks in a call."""

    def __init__(self, text: Text) -> None:
        self._stream = text.stream()
        self._pieces: list[str] = []

    def feed(self, token_id: int) -> str:
        """What a token adds."""
        piece = self._stream.feed(token_id)
        self._pieces.append(piece)
        return piece

    def rest(self) -> str:
        """What is left, at its end."""
        return self._stream.rest()

    def whole(self) -> str:
        """All of it, at its end."""
        return "".join(self._pieces) + self.rest()


def _marks(text: Text, names: tuple[str, ...]) -> dict[int, str]:
    """Marks by their IDs; none where one of them is missing."""
    ids = {number: name for name in names if (number := text.token_id(name)) is not None}
    return ids if len(ids) == len(names) else {}


def _escaped(text: str) -> str:
    """As it stands in a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
