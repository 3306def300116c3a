"""`/v1/messages` as Anthropic's client meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter
from servers import Running, Start

anthropic = pytest.importorskip("anthropic")

MODEL = "glm-5.1"
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
WANTED: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 120,
                          "extra_body": {"temperature": 0}}  # fmt: skip
RESULT = '{"sky": "rain", "degrees": 7}'
BUDGET = {"max_tokens": 1200, "thinking": {"type": "enabled", "budget_tokens": 1024}}


@pytest.fixture
def client(dialogue_server: Running) -> Any:
    return client_of(dialogue_server, api_key="none")


def client_of(server: Running, **who: str) -> Any:
    return anthropic.Anthropic(base_url=server.url, max_retries=0, **who)


def without_names(message: Any) -> Any:
    names = {"id": True, "parsed_output": True}
    blocks = [block.model_dump(exclude=names) for block in message.content]
    return blocks, message.stop_reason, message.stop_sequence


def test_whole_and_streamed(client: Any) -> None:
    whole = client.messages.create(**WANTED)
    assert [block.type for block in whole.content] == ["text"] and whole.stop_reason == "end_turn"
    assert whole.id == f"msg_{whole._request_id}"
    with client.messages.stream(**WANTED) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == whole.content[0].text and without_names(last) == without_names(whole)
    assert last.usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(model=MODEL, messages=QUESTION)
    assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_every_event_and_message_is_of_its_types(client: Any) -> None:
    from anthropic.types import Message, RawMessageStreamEvent

    events: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    wanted = {**WANTED, **BUDGET, "tools": [WEATHER]}
    with client.messages.with_streaming_response.create(**wanted, stream=True) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    for line in lines:
        events.validate_python(json.loads(line.removeprefix("data: ")), strict=True)
    assert len(lines) > 10
    raw = client.messages.with_raw_response.create(**wanted)
    Message.model_validate_json(raw.text(), strict=True)


def test_thoughts_a_call_and_its_result(client: Any) -> None:
    """What the stream gave goes back as it is."""
    wanted = {**WANTED, **BUDGET, "tools": [WEATHER]}
    with client.messages.stream(**wanted) as stream:
        events = [event.type for event in stream]
        message = stream.get_final_message()
    for kind in ("thinking", "signature", "input_json", "content_block_stop"):
        assert kind in events
    thought, call = message.content
    assert thought.thinking and thought.signature and message.stop_reason == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    assert without_names(client.messages.create(**wanted)) == without_names(message)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
    turns = [{"role": "assistant", "content": message.content},
             {"role": "user", "content": [result]}]  # fmt: skip
    answer = client.messages.create(**{**wanted, "messages": QUESTION + turns})
    assert answer.stop_reason == "end_turn" and "rain" in answer.content[-1].text
    assert answer.usage.cache_read_input_tokens > 0
    assert answer.usage.output_tokens_details.thinking_tokens > 0


def test_choices_and_forms(client: Any) -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        found = client.messages.create(**WANTED, tools=[WEATHER], tool_choice=choice)
        assert found.content[-1].name == "get_weather" and found.stop_reason == "tool_use"

    class Verdict(BaseModel):
        is_raining: bool

    parsed = client.messages.parse(**WANTED, output_format=Verdict)
    assert isinstance(parsed.parsed_output, Verdict)


def test_errors_are_of_its_classes(client: Any, start_server: Start, tmp_path: Path) -> None:
    with pytest.raises(anthropic.NotFoundError, match="'claude' does not exist") as found:
        client.messages.create(**{**WANTED, "model": "claude"})
    assert found.value.request_id and found.value.body["request_id"] == found.value.request_id
    image = {"type": "image", "source": {"type": "url", "url": "https://localhost/a.png"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content\.0: .*'image'"):
        client.messages.create(**{**WANTED, "messages": [{"role": "user", "content": [image]}]})
    search = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match="'web_search_20250305' is not known"):
        client.messages.create(**WANTED, tools=[search])

    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    server = start_server("--max-batch", "1", "--max-waiting", "0", "--max-body", "0.01",
                          "--api-key-file", str(keys), key="secret")  # fmt: skip
    body: dict[str, Any] = {**WANTED, "extra_body": {"ignore_eos": True}}
    with pytest.raises(anthropic.AuthenticationError):
        client_of(server, api_key="wrong").messages.create(**body)
    client = client_of(server, auth_token="secret")
    assert client.messages.create(**{**body, "max_tokens": 1}).stop_reason == "max_tokens"
    client = client_of(server, api_key="secret")
    with pytest.raises(anthropic.APIStatusError) as found:
        client.messages.create(**{**body, "messages": [{"role": "user", "content": "x" * 20_000}]})
    assert found.value.status_code == 413 and found.value.type == "request_too_large"
    with client.messages.stream(**{**body, "max_tokens": 1500}) as stream:
        next(iter(stream))
        with pytest.raises(anthropic.RateLimitError, match="wait"):
            client.messages.create(**body)
