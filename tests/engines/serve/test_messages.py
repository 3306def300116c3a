"""`/v1/messages` over the wire, beside the chat that it means."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from events import ANSWERS, events_of, named_events
from servers import Running

from glm_trt.engines.serve.answer_parser import (
    BadCall,
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Piece,
    Reasoning,
)
from glm_trt.engines.serve.errors import error_body
from glm_trt.engines.serve.message_writer import MessagesWriter, pairs_of
from glm_trt.engines.serve.messages import as_chat
from glm_trt.engines.serve.protocol.common import (
    ApiError,
)
from glm_trt.engines.serve.protocol.messages import MessageError, MessagesBody, ModelMessage

MODEL = "glm-5.1"
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER = {"name": "get_weather", "description": "The weather in a city.", "input_schema": SCHEMA}
CLOCK = {"name": "get_time", "input_schema": {"type": "object"}}
FUNCTION = {"name": "get_weather", "description": "The weather in a city.", "parameters": SCHEMA}
OF_CHAT = {"type": "function", "function": FUNCTION}
THINKS = {"thinking": {"type": "adaptive"}}
RESULT = '{"sky": "rain", "degrees": 7}'


def post(server: Running, path: str, body: dict[str, Any]) -> Any:
    """The answer as it is sent."""
    return httpx2.post(f"{server.url}/v1/{path}", json=body, timeout=60)


def ask(server: Running, **options: Any) -> dict[str, Any]:
    """A whole answer, of which every field is a known one."""
    wanted = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 120}
    answer = post(server, "messages", {**wanted, **options})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    ModelMessage.model_validate(found)
    assert found["id"] == f"msg_{answer.headers['request-id']}"
    return found


def ask_chat(server: Running, **options: Any) -> Any:
    wanted = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 120}
    answer = post(server, "chat/completions", {**wanted, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(server: Running, **options: Any) -> list[dict[str, Any]]:
    """Events as they are sent."""
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 120,
            "stream": True, **options}  # fmt: skip
    answer = post(server, "messages", body)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    return named_events(answer.text)


def put_together(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client makes of events, which come in Anthropic's order."""
    first, *between, delta, last = events
    assert (first["type"], delta["type"]) == ("message_start", "message_delta")
    assert last == {"type": "message_stop"}
    message: dict[str, Any] = first["message"]
    assert message["content"] == [] and message["stop_reason"] is None
    is_open, arguments = False, ""
    for event in between:
        kind, content = event["type"], message["content"]
        if kind == "content_block_start":
            assert not is_open and event["index"] == len(content)
            content.append(event["content_block"])
            is_open, arguments = True, ""
            continue
        assert is_open and event["index"] == len(content) - 1
        if kind == "content_block_stop":
            is_open = False
            continue
        assert kind == "content_block_delta"
        said = event["delta"]
        name = said["type"].removesuffix("_delta")
        if name == "input_json":
            arguments += said["partial_json"]
            content[-1]["input"] = pairs_of(arguments)
        else:
            content[-1][name] += said[name]
    assert not is_open
    return {**message, **delta["delta"], "usage": {**message["usage"], **delta["usage"]}}


def without_names(message: dict[str, Any]) -> dict[str, Any]:
    """Without what differs each time."""
    found = json.loads(json.dumps(message))
    for name in ("id", "usage"):
        found.pop(name)
    for block in found["content"]:
        block.pop("id", None)
    return found


def test_a_call_and_the_answer_to_its_result(dialogue_server: Running) -> None:
    """Blocks, whole and as events; what comes of them is what the chat gives."""
    wanted: dict[str, Any] = {"tools": [WEATHER], **THINKS}
    whole = ask(dialogue_server, **wanted)
    thought, call = whole["content"]
    chat = ask_chat(dialogue_server, tools=[OF_CHAT])
    said = chat["choices"][0]["message"]
    assert thought["thinking"] == said["reasoning_content"] and thought["signature"]
    assert (call["type"], call["name"], call["input"]) == (
        "tool_use", "get_weather", {"city": "Paris"}
    )  # fmt: skip
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("tool_use", None)
    usage = whole["usage"]
    assert usage["output_tokens"] == chat["usage"]["completion_tokens"]
    assert usage["output_tokens_details"]["thinking_tokens"] > 3

    events = streamed(dialogue_server, **wanted)
    assert without_names(put_together(events)) == without_names(whole)
    kinds = [x["delta"]["type"] for x in events if x["type"] == "content_block_delta"]
    assert kinds.count("thinking_delta") > 2 and kinds.count("input_json_delta") > 2
    assert kinds.count("signature_delta") == 1
    assert events[-2]["usage"]["output_tokens"] == usage["output_tokens"]

    result = {"type": "tool_result", "tool_use_id": call["id"], "content": RESULT}
    said["tool_calls"][0].pop("index", None)
    messages = [*QUESTION, {"role": "assistant", "content": whole["content"]},
                {"role": "user", "content": [result]}]  # fmt: skip
    answer = ask(dialogue_server, messages=messages, **wanted)
    same = ask_chat(dialogue_server, tools=[OF_CHAT], messages=[
        *QUESTION, said, {"role": "tool", "content": RESULT,
                          "tool_call_id": said["tool_calls"][0]["id"]}])  # fmt: skip
    assert answer["content"][-1]["text"] == same["choices"][0]["message"]["content"]
    assert "rain" in answer["content"][-1]["text"] and answer["stop_reason"] == "end_turn"
    usage, prompt = answer["usage"], same["usage"]["prompt_tokens"]
    assert usage["cache_read_input_tokens"] > 100 and usage["cache_creation_input_tokens"] == 0
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == prompt
    body = {"model": MODEL, "messages": messages, **wanted}
    count = post(dialogue_server, "messages/count_tokens", body)
    assert count.json() == {"input_tokens": prompt}
    line = dialogue_server.logged(answer["id"].removeprefix("msg_"))
    assert (line["path"], line["status"]) == ("/v1/messages", 200)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (prompt, usage["output_tokens"])


def test_a_seed_gives_the_tokens_of_the_chat(dialogue_server: Running) -> None:
    drawn = {"temperature": 1, "seed": 3, "max_tokens": 40}
    chat = ask_chat(dialogue_server, **drawn)["choices"][0]
    whole = ask(dialogue_server, **drawn, **THINKS)
    assert whole["content"][0]["thinking"] == chat["message"]["reasoning_content"]
    assert without_names(put_together(streamed(dialogue_server, **drawn, **THINKS))) == (
        without_names(whole)
    )
    # Without a word about it, there is no thinking: many read the first block as text.
    (text,) = ask(dialogue_server, **drawn)["content"]
    chat = ask_chat(dialogue_server, **drawn, thinking={"type": "disabled"})["choices"][0]
    assert text == {"type": "text", "text": chat["message"]["content"]}


def test_how_answers_end(dialogue_server: Running) -> None:
    stopped = ask(dialogue_server, stop_sequences=["never", "weather"], **THINKS)
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "weather")
    assert [x["thinking"] for x in stopped["content"]] == ["The user wants the"]
    events = streamed(dialogue_server, stop_sequences=["never", "weather"], **THINKS)
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "weather"}
    cut = ask(dialogue_server, tools=[WEATHER], max_tokens=22, **THINKS)
    assert cut["stop_reason"] == "max_tokens" and cut["usage"]["output_tokens"] == 22
    assert cut["content"][1]["name"] == "get_weather" and cut["content"][1]["input"] == {}
    nothing = ask(dialogue_server, max_tokens=0)
    assert nothing["content"] == [] and nothing["stop_reason"] == "max_tokens"


def test_choices_and_forms(dialogue_server: Running) -> None:
    def calls(**choice: Any) -> list[str]:
        found = ask(dialogue_server, tools=[WEATHER, CLOCK], tool_choice=choice)
        return [x["name"] for x in found["content"] if x["type"] == "tool_use"]

    assert calls(type="tool", name="get_time")[0] == "get_time"
    assert len(calls(type="any", disable_parallel_tool_use=True)) == 1
    assert calls(type="none") == []
    assert calls(type="auto") == ["get_weather"]
    schema = {"type": "object", "properties": {"sky": {"enum": ["rain", "sun"]}},
              "required": ["sky"], "additionalProperties": False}  # fmt: skip
    form = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
    found = ask(dialogue_server, output_config=form)
    assert json.loads(found["content"][0]["text"])["sky"] in ("rain", "sun")


def test_an_answer_goes_on_from_what_is_begun(dialogue_server: Running) -> None:
    whole = ask(dialogue_server)["content"][0]["text"]
    begun, rest = whole[:6], whole[6:]
    assert begun == begun.rstrip() and rest
    messages = [*QUESTION, {"role": "assistant", "content": begun}]
    assert ask(dialogue_server, messages=messages)["content"][0]["text"] == rest


def test_blocks_are_the_messages_of_a_chat() -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = MessagesBody.model_validate({
        "model": MODEL, "max_tokens": 9, "metadata": {"user_id": "u"}, "service_tier": "auto",
        "chat_template": "rag", "chat_template_kwargs": {"clear_thinking": False},
        "system": [{"type": "text", "text": "Be brief.", **cached}, {"type": "text", "text": "!"}],
        "tools": [{**WEATHER, "type": "custom", "strict": True, "eager_input_streaming": True,
                   **cached}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": "u"},
            {"role": "user", "content": [{"type": "text", "text": "v"},
                                         {"type": "text", "text": "w", **cached}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "so", "signature": "s"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "t", "citations": None},
                {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1},
                 "caller": {"type": "direct"}},
                {"type": "tool_use", "id": "b", "name": "f", "input": {}, **cached}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "b", "is_error": True, "content": [
                    {"type": "text", "text": "not "}, {"type": "text", "text": "there"}]},
                {"type": "tool_result", "tool_use_id": "a", "is_error": False, "content": "1"},
                {"type": "text", "text": "and?"}]},
            {"role": "system", "content": "Be quick."},
            {"role": "assistant", "content": "one"},
            {"role": "assistant", "content": "two"},
        ],
    })  # fmt: skip
    chat, begun = as_chat(body)
    found = [m.model_dump(exclude_defaults=True) for m in chat.messages]
    calls = [{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}},
             {"id": "b", "function": {"name": "f", "arguments": {}}}]  # fmt: skip
    assert found == [
        {"role": "system", "content": "Be brief.!"},
        {"role": "user", "content": "u\n\nvw"},
        {"role": "assistant", "reasoning_content": "so", "content": "t", "tool_calls": calls},
        {"role": "tool", "content": "1", "tool_call_id": "a"},
        {"role": "tool", "content": "Error: not there", "tool_call_id": "b"},
        {"role": "user", "content": "and?"},
        {"role": "system", "content": "Be quick."},
    ]
    assert begun == "one\n\ntwo"
    assert chat.tool_choice == "auto" and chat.parallel_tool_calls is False
    assert chat.thinking is not None and chat.thinking.type == "disabled"
    assert (chat.chat_template, chat.chat_template_kwargs) == ("rag", {"clear_thinking": False})
    assert chat.tools is not None
    function = {**FUNCTION, "strict": True}
    assert chat.tools[0].model_dump(exclude_unset=True) == {**OF_CHAT, "function": function}


USES = {"role": "assistant", "content": [
    {"type": "tool_use", "id": "a", "name": "f", "input": {}}]}  # fmt: skip


def gives(*blocks: dict[str, Any]) -> dict[str, Any]:
    """A turn behind a call of `a`."""
    return {"messages": [*QUESTION, USES, {"role": "user", "content": [*blocks]}]}


OF_A = {"type": "tool_result", "tool_use_id": "a"}


@pytest.mark.parametrize(("change", "text"), [
    ({"max_tokens": None}, "max_tokens: "),
    ({"messages": []}, "messages: List should have at least 1 item"),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages.0: Input tag 'tool'"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
     "messages.0.content.0: expected a block of the type text or tool_result, found 'image'"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "found 'document'"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "citations": []}]}]},
     "messages.0.content.0.citations: "),
    (gives({**OF_A, "content": [{"type": "image"}]}),
     "messages.2.content.0.content.0: expected a block of the type text, found 'image'"),
    (gives({**OF_A, "tool_use_id": "b"}),
     "messages.2.content.0.tool_use_id: no tool_use just before has 'b'"),
    (gives(OF_A, OF_A), "messages.2.content.1.tool_use_id: two blocks have 'a'"),
    (gives({"type": "text", "text": "and?"}),
     "messages.2: expected a tool_result for each tool_use just before, found none for 'a'"),
    (gives({"type": "text", "text": "so"}, OF_A), "messages.2.content.1: expected each"),
    ({"messages": [*QUESTION, USES, USES]}, "messages.2.content.0.id: two blocks have 'a'"),
    ({"messages": [*QUESTION, USES]}, "messages.1: expected the results of its tool_use blocks"),
    ({"messages": [*QUESTION, {"role": "assistant", "content": "a "}]}, "expected no white space"),
    ({"messages": [*QUESTION, {"role": "assistant", "content": "a"}], **THINKS},
     "messages.1: an answer that is begun does not go with thinking"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "messages.0: expected one of the user"),
    ({"system": [{"type": "image"}]}, "system.0: expected a block of the type text"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}]},
     "tools.0: a tool of the type 'web_search_20250305' is not known here"),
    ({"tools": [{"name": "f"}]}, "tools.0.input_schema: expected, and missing"),
    ({"tools": [WEATHER, WEATHER]}, "tools.1.name: two tools have the name 'get_weather'"),
    ({"tools": [{**WEATHER, "input_schema": {"type": "objekt"}}]},
     "tools[0].input_schema: type: expected one of"),
    ({"tool_choice": {"type": "any"}}, "tool_choice: asks for a call, and there are no tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name: no "),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "strin"}}}},
     "output_config.format.schema: type: expected one of"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}},
     "thinking.budget_tokens: expected less than max_tokens (2), found 1024"),
    ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens: Input should"),
    ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display: Input should"),
    ({"thinking": {"type": "between_tools"}}, "thinking: Input tag 'between_tools'"),
    ({"stop_sequences": [""]}, "stop_sequences.0: expected 1 to"),
    ({"max_tokens": 99999}, "max_tokens of 99999 does not fit"),
    ({"container": "c"}, "container: unknown field"),
    ({"stop": "x"}, "stop: unknown field"),
    ({"model": "claude"}, "the model 'claude' does not exist"),
])  # fmt: skip
def test_what_is_wrong_is_named(
    dialogue_server: Running, change: dict[str, Any], text: str
) -> None:
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 2} | change
    answer = post(dialogue_server, "messages", body)
    found = MessageError.model_validate(answer.json())
    is_model = "model" in change
    assert answer.status_code == (404 if is_model else 400), found
    assert found.error.type == ("not_found_error" if is_model else "invalid_request_error")
    assert text in found.error.message and "[type=" not in found.error.message
    assert found.request_id == answer.headers["request-id"] == answer.headers["x-request-id"]


def test_the_openapi_document_has_it(dialogue_server: Running) -> None:
    found = httpx2.get(f"{dialogue_server.url}/openapi.json").json()
    schemas = found["components"]["schemas"]
    for path, body in (("messages", "MessagesBody"), ("messages/count_tokens", "PromptBody")):
        assert schemas[body]["properties"]["model"]["enum"] == [MODEL]
        said = found["paths"][f"/v1/{path}"]["post"]
        assert said["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(body)
        for status in ("400", "401", "404", "413", "429", "503"):
            schema = said["responses"][status]["content"]["application/json"]["schema"]
            assert schema["$ref"].endswith("/MessageError")
    assert schemas["MessagesBody"]["properties"]["max_tokens"]["maximum"] == 4096
    assert (
        "text/event-stream" in found["paths"]["/v1/messages"]["post"]["responses"]["200"]["content"]
    )


@pytest.mark.parametrize(("status", "kind"), [
    (400, "invalid_request_error"), (401, "authentication_error"), (404, "not_found_error"),
    (405, "invalid_request_error"), (413, "request_too_large"), (429, "rate_limit_error"),
    (500, "api_error"), (503, "overloaded_error"),
])  # fmt: skip
def test_errors_have_the_form_of_their_path(status: int, kind: str) -> None:
    error = ApiError("is wrong", "top_k", status=status)
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        assert error_body(error, path, "r") == {
            "type": "error", "error": {"type": kind, "message": "top_k: is wrong"},
            "request_id": "r",
        }  # fmt: skip
    assert error_body(error, "/v1/messages2", "r") == error.body()


def written(*pieces: Piece, reason: str | None) -> tuple[MessagesWriter, list[dict[str, Any]]]:
    writer = MessagesWriter(MODEL, "x")
    return writer, events_of(writer, *pieces, reason=reason)


def test_blocks_follow_one_another() -> None:
    """Text after a call, calls that are broken or of no tool, thoughts that are taken up again."""
    writer, events = written(
        Content("a"), CallBegin(0, "f"), CallArguments(0, "{}"), CallEnd(0, None),
        BadCall("what", "unknown tool"), Reasoning("hm"), Reasoning("!"), CallBegin(1, "g"),
        CallArguments(1, '{"x": 1, "y": "'), CallEnd(1, "malformed"), reason="tool_calls",
    )  # fmt: skip
    message = put_together(events + writer.closing(ANSWERS))
    assert [x["type"] for x in message["content"]] == [
        "text", "tool_use", "text", "thinking", "tool_use"
    ]  # fmt: skip
    assert message["content"][2]["text"] == "what" and message["content"][4]["input"] == {"x": 1}
    assert message["content"][3]["thinking"] == "hm!" and message["stop_reason"] == "tool_use"
    usage = message["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (2, 1)
    assert json.loads(writer.keep_alive.splitlines()[1].removeprefix("data: ")) == {"type": "ping"}


def test_what_goes_wrong_when_events_have_begun() -> None:
    writer, _ = written(Content("so"), reason=None)
    (event,) = writer.failing(ANSWERS, ApiError("the engine failed", status=500))
    assert event == {"type": "error", "request_id": "x",
                     "error": {"type": "api_error", "message": "the engine failed"}}  # fmt: skip
    writer, _ = written(Content("so"), reason="abort")
    (event,) = writer.closing(ANSWERS)
    assert event["error"] == {"type": "overloaded_error",
                              "message": "the server ended before the answer did"}  # fmt: skip


def test_arguments_as_far_as_they_are_whole() -> None:
    whole = '{"a": "x, \\"y\\": {", "b": [1, {"c": null}], "a": 2.5}'
    assert pairs_of(whole) == {"a": 2.5, "b": [1, {"c": None}]}
    assert pairs_of(whole.removesuffix("2.5}")) == {"a": 'x, "y": {', "b": [1, {"c": None}]}
    assert pairs_of(whole[: whole.index("null")]) == {"a": 'x, "y": {'}
    assert pairs_of('{"a": "x') == pairs_of("{}") == pairs_of("{") == pairs_of("") == {}
