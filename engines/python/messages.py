"""Messages as clients send them, made into those that chat templates are written for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glm_trt.model.errors import GlmTrtError

Message = Mapping[str, Any]
# Names that clients give to a message's reasoning; templates read the first.
REASONING = ("reasoning_content", "thinking", "reasoning")


def normalized_messages(
    messages: Sequence[Message], arguments_as_text: bool = False
) -> list[dict[str, Any]]:
    """Copies of `messages`, of plain JSON values, in the one form that templates expect.

    - content that is null or absent is "", and a list of text parts is their text
    - arguments of calls that come as JSON text are the object, unless `arguments_as_text`; none
      are {}
    - reasoning, under whichever of its names, is both `reasoning_content` and `thinking`
    - other fields that are null are left out, as many templates would print "None"

    Raises
    ------
    GlmTrtError
        Naming the message, and the call or the part in it, that is none.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise GlmTrtError(f"messages: expected a list, found {_kind(messages)}")
    if not messages:
        raise GlmTrtError("messages: expected at least one, found none")
    return [
        _message(message, f"messages[{i}]", arguments_as_text) for i, message in enumerate(messages)
    ]


def plain(value: Any, place: str) -> Any:
    """A copy of `value` made of JSON's types alone: a template can call what methods it finds.

    Raises
    ------
    GlmTrtError
        If there is anything else in it, naming where.
    """
    try:
        return _plain(value, place)
    except RecursionError:
        raise GlmTrtError(f"{place}: nested too deeply") from None


def _plain(value: Any, place: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # an enum's, say: without the methods of its class
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_key(key, place): _plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
    raise GlmTrtError(f"{place}: expected a JSON value, found {_kind(value)}")


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str):
        raise GlmTrtError(f"{place}: expected names that are strings, found {_kind(key)}")
    return str.__str__(key)


def _message(message: Any, place: str, arguments_as_text: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise GlmTrtError(f"{place}: expected an object, found {_kind(message)}")
    result = {name: value for name, value in plain(message, place).items() if value is not None}
    if not isinstance(result.get("role"), str):
        raise GlmTrtError(f"{place}: role: expected a string, found {_kind(result.get('role'))}")
    result["content"] = _content(result.get("content"), f"{place}: content")
    reasoning = next((result[name] for name in REASONING if name in result), None)
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise GlmTrtError(
                f"{place}: reasoning_content: expected a string, found {_kind(reasoning)}"
            )
        result = {REASONING[1]: reasoning, **result, REASONING[0]: reasoning}
    if "tool_calls" in result:
        result["tool_calls"] = _calls(
            result["tool_calls"], f"{place}.tool_calls", arguments_as_text
        )
    return result


def _content(content: Any, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise GlmTrtError(f"{place}: expected a string or a list of parts, found {_kind(content)}")
    return "".join(_part(part, f"{place}[{i}]") for i, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        found = repr(kind) if isinstance(kind, str) else _kind(part)
        raise GlmTrtError(f"{place}: expected a part of type 'text', found {found}")
    if not isinstance(part.get("text"), str):
        raise GlmTrtError(f"{place}: text: expected a string, found {_kind(part.get('text'))}")
    return part["text"]


def _calls(calls: Any, place: str, arguments_as_text: bool) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise GlmTrtError(f"{place}: expected a list, found {_kind(calls)}")
    return [_call(call, f"{place}[{i}]", arguments_as_text) for i, call in enumerate(calls)]


def _call(call: Any, place: str, arguments_as_text: bool) -> dict[str, Any]:
    """A call, with its name and arguments in `function` or beside it."""
    if not isinstance(call, dict):
        raise GlmTrtError(f"{place}: expected an object, found {_kind(call)}")
    inner = call.get("function", call)
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str):
        raise GlmTrtError(f"{place}: expected a function with a name, found {_kind(name)}")
    arguments = arguments_of(inner.get("arguments"), f"{place} ({name}): arguments")
    if arguments_as_text and isinstance(inner.get("arguments"), str):
        arguments = inner["arguments"]
    changed = inner | {"arguments": arguments}
    return changed if inner is call else call | {"function": changed}


def arguments_of(arguments: Any, place: str) -> dict[str, Any]:
    """The object that a call's arguments are or spell; none are {}.

    Raises
    ------
    GlmTrtError
        If they are no object, naming `place`.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, parse_constant=_no_json) if arguments else {}
        except (ValueError, RecursionError) as error:
            raise GlmTrtError(f"{place}: expected a JSON object: {error}") from None
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise GlmTrtError(f"{place}: expected a JSON object, found {_kind(arguments)}")
    return arguments


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _kind(value: Any) -> str:
    """What a value is, in JSON's words where it has any."""
    words = {str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    words |= {list: "a list", dict: "an object", type(None): "nothing"}
    return words.get(type(value), type(value).__name__)
