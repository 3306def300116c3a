"""`/v1/responses` as OpenAI's client meets it, beside the chat that it means."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
from answers import TEXT
from events import ANSWERS, events_of, named_events
from openai import OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from servers import Running

from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.serve.answer_parser import (
    BadCall,
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Piece,
    Reasoning,
)
from glm_trt.engines.serve.protocol.common import (
    ApiError,
)
from glm_trt.engines.serve.protocol.responses import ModelResponse, ResponsesBody
from glm_trt.engines.serve.response_writer import ResponsesWriter
from glm_trt.engines.serve.responses import as_chat

MODEL = "glm-5.1"
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
QUESTION = "What is the weather in Paris?"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER = {"type": "function", "name": "get_weather", "description": "The weather in a city.",
           "parameters": PARAMETERS}  # fmt: skip
OF_CHAT = {"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}


@pytest.fixture
def client(dialogue_server: Running) -> OpenAI:
    return dialogue_server.client


def ask(client: OpenAI, **options: Any) -> Any:
    wanted = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 120}
    return client.responses.create(**{**wanted, **options})


def ask_chat(client: OpenAI, **options: Any) -> Any:
    wanted = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}],
              "temperature": 0, "max_tokens": 120}  # fmt: skip
    return client.chat.completions.create(**{**wanted, **options}).choices[0]


def streamed(server: Running, **options: Any) -> list[dict[str, Any]]:
    """Events as they are sent, each of which OpenAI's own types accept."""
    body = {"model": MODEL, "input": QUESTION, "temperature": 0, "stream": True, **options}
    answer = httpx2.post(f"{server.url}/v1/responses", json=body, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    events = named_events(answer.text)
    for event in events:
        EVENTS.validate_python(event, strict=True)
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    return events


def without_names(response: dict[str, Any]) -> dict[str, Any]:
    """Without what differs each time: IDs and times."""
    found = json.loads(json.dumps(response))
    for name in ("id", "created_at", "completed_at", "usage"):
        found.pop(name)
    for item in found["output"]:
        item.pop("id")
        item.pop("call_id", None)
    return found


REASONING = ["output_item.added", "content_part.added", "reasoning_text.delta",
             "reasoning_text.done", "content_part.done", "output_item.done"]  # fmt: skip
MESSAGE = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done",
           "content_part.done", "output_item.done"]  # fmt: skip
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done"]  # fmt: skip


def order(events: list[dict[str, Any]]) -> list[str]:
    """The types of events, those in a row that are the same once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [x for i, x in enumerate(names) if not i or names[i - 1] != x]


def test_a_call_and_the_answer_to_its_result(dialogue_server: Running, client: OpenAI) -> None:
    """Items, whole and as events; what comes of them is what the chat gives."""
    whole = ask(client, tools=[WEATHER])
    assert [item.type for item in whole.output] == ["reasoning", "function_call"]
    assert whole.status == "completed" and whole.store is False
    thought, call = whole.output
    chat = ask_chat(client, tools=[OF_CHAT])
    assert thought.content[0].text == chat.message.reasoning_content
    assert call.name == chat.message.tool_calls[0].function.name == "get_weather"
    assert call.arguments == chat.message.tool_calls[0].function.arguments
    assert json.loads(call.arguments) == {"city": "Paris"}

    events = streamed(dialogue_server, tools=[WEATHER], max_output_tokens=120)
    assert order(events) == ["created", "in_progress", *REASONING, *CALL, "completed"]
    last = events[-1]["response"]
    raw = whole.model_dump(mode="json", exclude_unset=True)
    assert without_names(last) == without_names(raw)
    ModelResponse.model_validate(last)
    for kind, key in (("reasoning_text", "text"), ("function_call_arguments", "arguments")):
        deltas = [x["delta"] for x in events if x["type"] == f"response.{kind}.delta"]
        done = next(x[key] for x in events if x["type"] == f"response.{kind}.done")
        assert "".join(deltas) == done and len(deltas) > 2
    items = [x["item"] for x in events if x["type"] == "response.output_item.done"]
    assert items == last["output"] and {x["status"] for x in items} == {"completed"}

    result = {"type": "function_call_output", "call_id": call.call_id,
              "output": '{"sky": "rain", "degrees": 7}'}  # fmt: skip
    items = [{"role": "user", "content": QUESTION}, *whole.output, result]
    answer = ask(client, input=items, tools=[WEATHER])
    message = chat.message.model_dump(exclude_none=True)
    said = client.chat.completions.create(model=MODEL, temperature=0, max_tokens=120, tools=[
        OF_CHAT], messages=[  # type: ignore[list-item]
        {"role": "user", "content": QUESTION}, message,
        {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"],
         "content": result["output"]}])  # fmt: skip
    assert answer.output_text == said.choices[0].message.content and "rain" in answer.output_text
    assert answer.usage.input_tokens == said.usage.prompt_tokens  # type: ignore[union-attr]
    assert answer.usage.input_tokens_details.cached_tokens > 0
    assert answer.usage.output_tokens_details.reasoning_tokens > 0


@pytest.mark.parametrize("seed", [3, 2**63])
def test_a_seed_gives_the_tokens_of_the_chat(client: OpenAI, seed: int) -> None:
    chat = ask_chat(client, temperature=1, seed=seed, max_tokens=40)
    drawn = {"temperature": 1, "max_output_tokens": 40, "extra_body": {"seed": seed}}
    whole = ask(client, **drawn)
    with client.responses.stream(model=MODEL, input=QUESTION, **drawn) as stream:  # type: ignore[arg-type]
        events = [*stream]
    thought = "".join(x.delta for x in events if x.type == "response.reasoning_text.delta")
    text = "".join(x.delta for x in events if x.type == "response.output_text.delta")
    assert thought == chat.message.reasoning_content == whole.output[0].content[0].text
    assert text == (chat.message.content or "") == whole.output_text
    assert (whole.status == "incomplete") == (chat.finish_reason == "length")


def test_log_probabilities_are_of_what_is_said(dialogue_server: Running, client: OpenAI) -> None:
    """Not of reasoning, nor of the end."""
    wanted = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "tools": [WEATHER]}
    answer = ask(client, input="Hello!", **wanted)
    message = next(item for item in answer.output if item.type == "message")
    found = message.content[0].logprobs
    assert "".join(x.token for x in found) == answer.output_text and len(found) > 3
    chat = ask_chat(client, messages=[{"role": "user", "content": "Hello!"}], tools=[OF_CHAT],
                    logprobs=True, top_logprobs=2)  # fmt: skip
    expected = chat.logprobs.content[-len(found) - 1 : -1]
    for token, same in zip(found, expected, strict=True):
        assert (token.token, token.bytes) == (same.token, same.bytes)
        assert token.logprob == pytest.approx(same.logprob, abs=2e-4)
        assert [x.token for x in token.top_logprobs] == [x.token for x in same.top_logprobs]
    events = streamed(dialogue_server, input="Hello!", **wanted)
    deltas = [x for x in events if x["type"] == "response.output_text.delta"]
    assert [y["token"] for x in deltas for y in x["logprobs"]] == [x.token for x in found]
    assert order(events) == ["created", "in_progress", *REASONING, *MESSAGE, "completed"]
    plain = ask(client, input="Hello!", tools=[WEATHER])
    assert plain.output[-1].content[0].logprobs == []


def test_forms_and_choices(client: OpenAI) -> None:
    class Place(BaseModel):
        city: str
        days: int

    parsed = client.responses.parse(model=MODEL, input=QUESTION, text_format=Place, temperature=0)
    assert isinstance(parsed.output_parsed, Place)
    assert parsed.text and parsed.text.format and parsed.text.format.type == "json_schema"
    some = ask(client, text={"format": {"type": "json_object"}}, reasoning={"effort": "none"})
    assert some.output[0].type == "message" and (
        some.status == "incomplete" or isinstance(json.loads(some.output_text), dict)
    )
    clock = {"type": "function", "name": "get_time"}
    tools = [WEATHER, clock]
    named = ask(client, tools=tools, tool_choice={"type": "function", "name": "get_time"})
    assert [x.name for x in named.output if x.type == "function_call"] == ["get_time"]
    assert named.tool_choice.name == "get_time" and len(named.tools) == 2
    required = ask(client, tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert [x.type for x in required.output] == ["reasoning", "function_call"]
    none = ask(client, tools=tools, tool_choice="none")
    assert not [x for x in none.output if x.type == "function_call"]


def test_what_is_cut_is_incomplete(dialogue_server: Running, client: OpenAI) -> None:
    lengths = {"reasoning": 5, "function_call": 22}
    for kind, length in lengths.items():
        answer = ask(client, tools=[WEATHER], max_output_tokens=length)
        assert answer.status == "incomplete" and answer.output[-1].type == kind
        assert answer.incomplete_details.reason == "max_output_tokens"
        assert [x.status for x in answer.output[:-1]] == ["completed"] * (len(answer.output) - 1)
        assert answer.output[-1].status == "incomplete"
        assert answer.usage.output_tokens == length and answer.completed_at is None
    events = streamed(dialogue_server, max_output_tokens=3, reasoning={"effort": "minimal"})
    assert order(events) == ["created", "in_progress", *MESSAGE, "incomplete"]
    assert events[-2]["item"]["status"] == "incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_items_are_the_messages_of_a_chat() -> None:
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"x": 1}'}
    body = ResponsesBody.model_validate({
        "model": MODEL, "instructions": "Be brief.", "temperature": 0.5, "stop": ["x"],
        "reasoning": {"effort": "low", "context": "all_turns"}, "tools": [WEATHER],
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "p"},
                                              {"type": "input_text", "text": "q"}]},
            {"type": "message", "role": "user", "content": "u"},
            {"type": "reasoning", "id": "r", "summary": [], "content": [
                {"type": "reasoning_text", "text": "so"}]},
            {"type": "message", "id": "m", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": "t", "annotations": [], "logprobs": [],
                          "parsed": {}}]},
            call, {**call, "call_id": "b", "arguments": "", "parsed_arguments": {}},
            {"role": "assistant", "content": "after"},
            {"type": "function_call_output", "call_id": "b", "output": "2"},
            {"type": "function_call_output", "call_id": "a",
             "output": [{"type": "input_text", "text": "1"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
            {"role": "assistant", "content": "one"}, {"role": "assistant", "content": "two"},
            {"type": "reasoning", "summary": []},
        ],
    })  # fmt: skip
    chat = as_chat(body)
    found = [m.model_dump(exclude_defaults=True) for m in chat.messages]
    calls = [{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}},
             {"id": "b", "function": {"name": "f", "arguments": {}}}]  # fmt: skip
    assert found == [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "pq"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "reasoning_content": "so", "content": "tafter", "tool_calls": calls},
        {"role": "tool", "content": "2", "tool_call_id": "b"},
        {"role": "tool", "content": "1", "tool_call_id": "a"},
        {"role": "assistant", "reasoning_content": "short", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "assistant", "content": ""},
    ]
    assert chat.clear_thinking is False and chat.reasoning_effort == "low"
    assert (chat.temperature, chat.stop, chat.seed) == (0.5, ["x"], None)
    assert chat.tools is not None
    assert chat.tools[0].model_dump(exclude_unset=True) == OF_CHAT


@pytest.mark.parametrize(("change", "param", "text"), [
    ({"store": True}, "store", "nothing is stored here"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored here"),
    ({"background": True}, "background", "nothing is stored here"),
    ({"conversation": {"id": "conv_1"}}, "conversation", "nothing is stored here"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "nothing is stored here"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0", "nothing is stored here"),
    ({"input": []}, "input", "at least 1"),
    ({"input": 5}, "input", "expected text, or a list of items"),
    ({"input": [{"type": "computer_call"}]}, "input.0", "expected an item of the type message"),
    ({"input": [{"role": "user"}]}, "input.0.content", "expected, and missing"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0",
     "'input_image'"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]},
     "input.0.call_id", "no function_call before it"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[1]"}]},
     "input.0.arguments", "expected a JSON object, found a list"),
    ({"max_output_tokens": 99999}, "max_output_tokens", "max_output_tokens of 99999 does not fit"),
    ({"input": "x " * 9000}, "input", "does not fit"),
    ({"top_logprobs": 2}, "top_logprobs", "message.output_text.logprobs"),
    ({"include": ["file_search_call.results"]}, "include.0", "Input should be"),
    ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name",
     "'g'"),
    ({"tools": [WEATHER, WEATHER]}, "tools.1.name", "two tools"),
    ({"tools": [OF_CHAT]}, "tools.0.name", "expected, and missing"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
    ({"tools": [WEATHER | {"parameters": {"type": "objekt"}}]}, "tools.0.parameters",
     'tools[0].parameters: type: expected one of'),
    ({"text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "strin"}}}},
     "text.format.schema", 'text.format.schema: type: expected one of'),
    ({"text": {"format": {"type": "json_object"}}, "tools": [WEATHER], "tool_choice": "required"},
     "text.format", "text.format: asks for JSON"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options", "stream: true"),
    ({"max_tokens": 4}, "max_tokens", "unknown field"),
    ({"model": "gpt-5"}, "model", "does not exist"),
])  # fmt: skip
def test_what_is_wrong_is_named(
    dialogue_server: Running, change: dict[str, Any], param: str, text: str
) -> None:
    body = {"model": MODEL, "input": "Hi", "max_output_tokens": 2} | change
    answer = httpx2.post(f"{dialogue_server.url}/v1/responses", json=body, timeout=60)
    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400), error
    assert error["param"] == param and text in error["message"], error


def test_clients_say_what_asks_for_nothing(client: OpenAI) -> None:
    answer = ask(
        client, max_output_tokens=1, store=False, parallel_tool_calls=True, truncation="disabled",
        service_tier="auto", user="u", metadata={"a": "b"}, prompt_cache_key="k",
        include=["reasoning.encrypted_content"], reasoning={"effort": "max", "summary": "auto"},
        text={"verbosity": "medium"}, instructions="Be brief.",
    )  # fmt: skip
    assert answer.status == "incomplete" and answer.metadata == {"a": "b"}
    assert (answer.instructions, answer.user, answer.temperature) == ("Be brief.", "u", 0)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def written(*pieces: Piece, reason: str | None) -> tuple[ResponsesWriter, list[dict[str, Any]]]:
    body = ResponsesBody.model_validate({"model": MODEL, "input": "Hi"})
    served: Any = SimpleNamespace(name=MODEL, defaults=Sampling(temperature=1.0), text=TEXT)
    writer = ResponsesWriter(body, served, "x")
    return writer, events_of(writer, *pieces, reason=reason)


def test_what_goes_wrong_when_events_have_begun() -> None:
    writer, events = written(Content("so"), reason=None)
    error = ApiError("the engine failed", status=500, type="server_error")
    events += writer.failing(ANSWERS, error)
    for event in events:
        EVENTS.validate_python(event, strict=True)
    assert order(events) == ["created", "in_progress", *MESSAGE, "error", "failed"]
    assert events[-2]["message"] == "the engine failed" and events[-2]["code"] == "server_error"
    response = events[-1]["response"]
    assert response["error"] == {"code": "server_error", "message": "the engine failed"}
    assert response["output"][0]["status"] == "incomplete"
    writer, events = written(Content("so"), reason="abort")
    (last,) = writer.closing(ANSWERS)
    EVENTS.validate_python(last, strict=True)
    response = last["response"]
    assert last["type"] == "response.failed" and "server ended" in response["error"]["message"]
    assert response["usage"]["total_tokens"] == 5


def test_items_follow_one_another() -> None:
    """Text after a call, calls that are broken or of no tool, reasoning that is taken up again."""
    writer, events = written(
        Content("a"), CallBegin(0, "f"), CallArguments(0, "{}"), CallEnd(0, None),
        BadCall("what", "unknown tool"), Reasoning("hm"), CallBegin(1, "g"),
        CallArguments(1, '{"x": '), CallEnd(1, "malformed"), reason="tool_calls",
    )  # fmt: skip
    (last,) = writer.closing(ANSWERS)
    for event in [*events, last]:
        EVENTS.validate_python(event, strict=True)
    assert order(events) == ["created", "in_progress", *MESSAGE, *CALL, *MESSAGE, *REASONING, *CALL]
    output = last["response"]["output"]
    assert [x["status"] for x in output] == ["completed"] * 4 + ["incomplete"]
    assert [x["id"] for x in output] == ["msg_x_0", "fc_x_1", "msg_x_2", "rs_x_3", "fc_x_4"]
    assert output[2]["content"][0]["text"] == "what" and output[4]["arguments"] == '{"x": '
    assert [x["output_index"] for x in events[2:] if "item" in x] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert output[1]["call_id"] != output[4]["call_id"]
