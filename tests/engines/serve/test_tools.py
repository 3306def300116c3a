"""Reasoning, calls and JSON through OpenAI's client, of a model that was trained for them."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import dialogues
import jsonschema
import pytest
from openai import BadRequestError, OpenAI
from servers import Running

MODEL = "glm-5.1"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture
def client(dialogue_server: Running) -> OpenAI:
    return dialogue_server.client


def ask(client: OpenAI, **options: Any) -> Any:
    wanted = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 120}
    return client.chat.completions.create(**{**wanted, **options})


def streamed(client: OpenAI, **options: Any) -> tuple[str, str, list[list[str]], str]:
    """Reasoning, content, the name and the arguments of each call, and why it ended."""
    reasoning, content, reason = "", "", ""
    calls: list[list[str]] = []
    for chunk in ask(client, stream=True, **options):
        choice = chunk.choices[0]
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        content += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or []:
            if call.function.name is not None:
                assert call.id and call.type == "function" and call.index == len(calls)
                calls.append([call.function.name, ""])
            calls[call.index][1] += call.function.arguments or ""
    return reasoning, content, calls, reason


def drawn(kind: int) -> Any:
    """A dialogue of the model's own language, whose question a function answers."""
    draw = random.Random(kind)
    while True:
        dialogue = dialogues.draw(draw)
        roles = [message["role"] for message in dialogue.messages]
        if dialogue.tools and dialogue.thinking and "tool" in roles and roles[-1] == "assistant":
            return dialogue


@pytest.mark.parametrize("number", range(3))
def test_a_dialogue_with_a_call(client: OpenAI, number: int) -> None:
    """It calls what answers the question, reads the result, and answers; whole and streamed."""
    dialogue = drawn(number)
    place = next(i for i, m in enumerate(dialogue.messages) if m.get("tool_calls"))
    before = list(dialogue.messages[:place])
    whole = ask(client, messages=before, tools=dialogue.tools, tool_choice="auto")
    message = whole.choices[0].message
    assert message.tool_calls and whole.choices[0].finish_reason == "tool_calls"
    assert message.model_extra["reasoning_content"]
    offered = {tool["function"]["name"]: tool["function"] for tool in dialogue.tools}
    for call in message.tool_calls:
        schema = offered[call.function.name].get("parameters") or {"type": "object"}
        jsonschema.validate(json.loads(call.function.arguments), schema)
    reasoning, content, calls, reason = streamed(client, messages=before, tools=dialogue.tools)
    assert calls == [[x.function.name, x.function.arguments] for x in message.tool_calls]
    assert reasoning == message.model_extra["reasoning_content"] and reason == "tool_calls"
    assert content == (message.content or "")
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "done"} for call in message.tool_calls
    ]
    answer = ask(
        client, messages=[*before, message.model_dump(exclude_none=True), *results],
        tools=dialogue.tools,
    )  # fmt: skip
    assert answer.choices[0].finish_reason in ("stop", "tool_calls", "length")


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
@pytest.mark.parametrize("choice", [
    "required", {"type": "function", "function": {"name": "get_time"}}, "none",
])  # fmt: skip
def test_tool_choice_is_kept(
    client: OpenAI, choice: Any, thinking: str, temperature: float
) -> None:
    """Whatever the model would say: at temperature 1 too."""
    for seed in range(3):
        found = ask(
            client, tools=[WEATHER, CLOCK], tool_choice=choice, temperature=temperature, seed=seed,
            max_tokens=200, messages=[{"role": "user", "content": "Hello"}],
            extra_body={"thinking": {"type": thinking}},
        ).choices[0]  # fmt: skip
        calls = found.message.tool_calls or []
        if choice == "none":
            assert not calls
            continue
        if found.finish_reason == "length":
            continue
        assert found.finish_reason == "tool_calls" and calls
        for call in calls:
            assert call.function.name in ("get_weather", "get_time")
            if isinstance(choice, dict):
                assert (call.function.name, call.function.arguments) == ("get_time", "{}")
            if call.function.name == "get_weather":
                parameters = WEATHER["function"]["parameters"]  # type: ignore[index]
                jsonschema.validate(json.loads(call.function.arguments), parameters)
        if thinking == "disabled":
            assert not found.message.model_extra.get("reasoning_content")


def test_one_call_where_they_are_not_parallel(client: OpenAI) -> None:
    for seed in range(3):
        found = ask(
            client, tools=[CLOCK], tool_choice="required", parallel_tool_calls=False,
            temperature=1, seed=seed, extra_body={"thinking": {"type": "disabled"}},
        ).choices[0]  # fmt: skip
        assert len(found.message.tool_calls) == 1


@pytest.mark.parametrize("temperature", [0, 1])
def test_json_of_a_schema(client: OpenAI, temperature: float) -> None:
    schema = {
        "type": "object",
        "properties": {"rain": {"type": "boolean"}, "sky": {"enum": ["blue", "grey"]}},
        "required": ["rain", "sky"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": schema, "strict": True}}
    found = ask(client, response_format=form, temperature=temperature, seed=1,
                extra_body={"thinking": {"type": "disabled"}})  # fmt: skip
    assert found.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(found.choices[0].message.content), schema)


def test_thinking_may_be_turned_off(client: OpenAI) -> None:
    on = ask(client, tools=[WEATHER])
    assert on.choices[0].message.model_extra["reasoning_content"]
    assert on.usage.completion_tokens_details.reasoning_tokens > 3
    for off in (
        {"extra_body": {"thinking": {"type": "disabled"}}},
        {"reasoning_effort": "none"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    ):
        found = ask(client, tools=[WEATHER], **off)
        assert not found.choices[0].message.model_extra.get("reasoning_content")
        assert found.usage.completion_tokens_details.reasoning_tokens == 0
        assert found.usage.prompt_tokens <= on.usage.prompt_tokens


def test_the_next_turn_runs_what_is_new(client: OpenAI) -> None:
    first = ask(client, tools=[WEATHER], max_tokens=60)
    message = first.choices[0].message.model_dump(exclude_none=True)
    more = [*QUESTION, message, {"role": "user", "content": "And in Rome?"}]
    if message.get("tool_calls"):
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sun"}
        more.insert(2, result)
    second = ask(client, messages=more, tools=[WEATHER])
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 4


@pytest.mark.parametrize(("change", "param"), [
    ({"tools": [WEATHER, WEATHER]}, "tools.1.function.name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
     "tool_choice.function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "wrong"}}}]},
     "tools.0.function.parameters"),
    ({"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}}},
     "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object"}, "tools": [CLOCK], "tool_choice": "required"},
     "response_format"),
    ({"messages": [{"role": "assistant", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{"}}]}]}, "messages"),
])  # fmt: skip
def test_what_is_wrong_is_named(client: OpenAI, change: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as found:
        ask(client, **change)
    body: Any = found.value.body
    assert str(body["param"]).startswith(param), body


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


CHINESE = {"const": {"ok": True}, "description": "气" * 21_000}  # 63,000 bytes
LARGE = {"type": "object", "description": "气" * 22_000}
ENDLESS = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}


@pytest.mark.parametrize(("schema", "reason"), [
    (nested(70), "nested deeper than 64 levels"),
    (nested(900), "nested deeper than 64 levels"),
    (LARGE, "expected 65536 bytes at most, found 66"),
    (LARGE | {"description": "x" * 15_000_000}, "expected 65536 bytes at most, found 15"),
    (ENDLESS, "nothing finite satisfies"),
], ids=["deep", "deeper", "large", "larger", "recursive"])  # fmt: skip
def test_limits_of_a_schema_are_the_same_wherever_it_is(
    client: OpenAI, schema: Any, reason: str
) -> None:
    """A response's form, a tool, and both of them among a response's items."""
    form = {"name": "x", "schema": schema}
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"x": schema}}}
    if schema is ENDLESS:
        tool["parameters"] = schema
    asked: list[tuple[Any, dict[str, Any], str]] = [
        (ask, {"response_format": {"type": "json_schema", "json_schema": form}},
         "response_format.json_schema.schema"),
        (ask, {"tools": [CLOCK, {"type": "function", "function": tool}]},
         "tools.1.function.parameters"),
        (respond, {"text": {"format": {"type": "json_schema", **form}}}, "text.format.schema"),
        (respond, {"tools": [{"type": "function", **tool}]}, "tools.0.parameters"),
    ]  # fmt: skip
    for how, options, param in asked:
        began = time.monotonic()
        with pytest.raises(BadRequestError) as found:
            how(client, **options)
        body: Any = found.value.body
        assert body["param"] == param and reason in body["message"], (param, body)
        assert time.monotonic() - began < 5  # of some 0.2, on a machine that does other things


def respond(client: OpenAI, **options: Any) -> Any:
    return client.responses.create(model=MODEL, input="Hi", **options)


def test_a_schema_is_measured_in_utf_8(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": CHINESE}}
    found = ask(client, response_format=form, reasoning_effort="none").choices[0].message.content
    assert json.loads(found) == {"ok": True}


def test_variables_of_the_template_are_not_nested_deeply(client: OpenAI) -> None:
    for depth in (70, 900):
        with pytest.raises(BadRequestError, match="nested deeper than 64") as found:
            ask(client, extra_body={"chat_template_kwargs": {"x": nested(depth)}})
        assert found.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(("arguments", "reason"), [
    ('{"city": "\\ud800"}', "expected Unicode text, found U\\+D800"),
    ('{"city"', "arguments: expected a JSON object: "),
    ("[1]", "arguments: expected a JSON object, found a list"),
])  # fmt: skip
def test_arguments_that_are_none(client: OpenAI, arguments: str, reason: str) -> None:
    """Half of a surrogate pair too, which only the JSON within the JSON spells."""
    made = {"name": "get_weather", "arguments": arguments}
    call = {"id": "1", "type": "function", "function": made}
    said = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    answer = [{"role": "tool", "tool_call_id": "1", "content": "x"}]
    with pytest.raises(BadRequestError, match=reason):
        ask(client, messages=[*QUESTION, *said, *answer], tools=[WEATHER])
