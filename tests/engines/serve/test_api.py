"""The API as OpenAI's client meets it, against the runtime's own tokens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import numpy as np
import openai
import pytest
from openai import OpenAI
from servers import Running, Start

import glm_trt
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.text import Text
from glm_trt.engines.serve.protocol.chat import ChatCompletion, ChatCompletionChunk
from glm_trt.engines.serve.protocol.completions import Completion

MODEL = "glm-5.1"
PROMPT = "def main(arguments):\n    "


@pytest.fixture(scope="module")
def text(runtime: Runtime) -> Text:
    assert runtime.text is not None
    return runtime.text


@pytest.fixture
def client(server: Running) -> OpenAI:
    return server.client


def messages(content: str = PROMPT) -> list[Any]:
    return [{"role": "user", "content": content}]


def post(server: Running, path: str, body: Any, **options: Any) -> httpx2.Response:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    headers = {"Content-Type": "application/json"} | options.pop("headers", {})
    return httpx2.post(f"{server.url}{path}", content=content, headers=headers, timeout=60,
                       **options)  # fmt: skip


@pytest.mark.parametrize("sampling", [
    {"temperature": 0}, {"temperature": 0.8, "seed": 7},
    {"temperature": 1, "seed": 2**63, "extra_body": {"top_k": 20, "repetition_penalty": 1.1}},
])  # fmt: skip
def test_a_seed_gives_the_tokens_of_run(
    client: OpenAI, runtime: Runtime, text: Text, sampling: dict[str, Any]
) -> None:
    """Whole and streamed, beside others in the batch."""
    plain = {**sampling, **sampling.get("extra_body", {})}
    plain.pop("extra_body", None)
    ids = text.encode(PROMPT)
    expected = runtime.generate([ids], 24, eos_token_ids=(), **plain)[0]
    others = [
        threading.Thread(target=client.completions.create, kwargs={
            "model": MODEL, "prompt": PROMPT[i:], "max_tokens": 30 + i, "temperature": 1.0})
        for i in range(3)
    ]  # fmt: skip
    for other in others:
        other.start()
    wanted: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, **sampling}
    wanted["extra_body"] = {"ignore_eos": True, **sampling.get("extra_body", {})}
    whole = client.completions.create(**wanted)
    assert whole.choices[0].text == text.decode(expected)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.completion_tokens == 24
    assert whole.usage.prompt_tokens == len(ids)
    pieces = [*client.completions.create(**wanted, stream=True)]
    assert "".join(x.choices[0].text for x in pieces) == text.decode(expected)
    for other in others:
        other.join()


def test_a_chat_whole_and_streamed(client: OpenAI, runtime: Runtime, text: Text) -> None:
    ids = text.chat(messages(), enable_thinking=True)
    expected = runtime.generate([ids], 16, eos_token_ids=())[0]
    wanted: dict[str, Any] = {
        "model": MODEL, "messages": messages(), "max_completion_tokens": 16, "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    whole = client.chat.completions.create(**wanted)
    assert whole.choices[0].message.content == text.decode(expected)
    ChatCompletion.model_validate(whole.model_dump(exclude_unset=True))
    chunks = [*client.chat.completions.create(
        **wanted, stream=True, stream_options={"include_usage": True}
    )]  # fmt: skip
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(deltas) == text.decode(expected) and len(deltas) > 10
    assert [x.choices[0].finish_reason for x in chunks[:-1]] == [None] * (len(deltas) - 1) + [
        "length"
    ]
    assert not chunks[-1].choices and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens == len(ids) + 16
    stop = text.decode(expected)[-6:-3]
    with client.chat.completions.stream(**wanted, stop=[stop]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    answer = text.decode(expected)
    assert final.choices[0].message.content == answer[: answer.index(stop)]


def test_choices_differ_and_are_repeated_by_their_seeds(client: OpenAI) -> None:
    wanted: dict[str, Any] = {
        "model": MODEL, "messages": messages(), "max_tokens": 12, "seed": 5, "temperature": 1,
    }  # fmt: skip
    several = client.chat.completions.create(**wanted, n=3)
    texts = [choice.message.content for choice in several.choices]
    assert len({*texts}) == 3 and [x.index for x in several.choices] == [0, 1, 2]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**wanted, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    second = client.chat.completions.create(**{**wanted, "seed": 6})
    assert second.choices[0].message.content == texts[1]
    assert several.usage is not None and several.usage.completion_tokens == 36


def test_log_probabilities(client: OpenAI, runtime: Runtime, text: Text) -> None:
    ids = text.encode(PROMPT)
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=5, temperature=0, logprobs=3, echo=True
    )
    found = answer.choices[0].logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs
    logits = runtime.forward([[*ids, *runtime.generate([ids], 5)[0]]])[0].astype("float64")
    expected = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    sequence = [*ids, *runtime.generate([ids], 5)[0]]
    assert "".join(found.tokens) == answer.choices[0].text == text.decode(sequence)
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    for i, token in enumerate(sequence[1:]):
        assert found.token_logprobs[i + 1] == pytest.approx(expected[i, token], abs=2e-4)
        best = found.top_logprobs[i + 1]
        assert best is not None and len(best) == 3
        assert max(best.values()) == pytest.approx(expected[i].max(), abs=2e-4)
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(len(found.tokens))]
    chat = client.chat.completions.create(
        model=MODEL, messages=messages(), max_tokens=4, temperature=0, logprobs=True,
        top_logprobs=2, extra_body={"prompt_logprobs": 1},
    )  # fmt: skip
    content = chat.choices[0].logprobs and chat.choices[0].logprobs.content
    assert content and len(content) == 4
    assert (
        b"".join(bytes(x.bytes or []) for x in content).decode() == chat.choices[0].message.content
    )
    assert all(len(x.top_logprobs) == 2 and x.top_logprobs[0].logprob == x.logprob for x in content)
    of_prompt = (chat.model_extra or {})["prompt_logprobs"]
    assert of_prompt[0] is None and len(of_prompt) == len(text.chat(messages()))


def test_nothing_new_but_the_prompts_log_probabilities(client: OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=[[5, 6, 7], [9, 10]], max_tokens=0, logprobs=0, echo=True
    )
    assert [len(x.logprobs.tokens or []) for x in answer.choices if x.logprobs] == [3, 2]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 0)
    Completion.model_validate(answer.model_dump(exclude_unset=True))


def test_stop_strings_biases_and_least_lengths(
    client: OpenAI, runtime: Runtime, text: Text
) -> None:
    ids = text.encode(PROMPT)
    tokens = runtime.generate([ids], 24, eos_token_ids=())[0]
    whole = text.decode(tokens)
    stop = whole[20:24]
    wanted: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    for stream in (False, True):
        found = client.completions.create(
            **wanted, stop=["never so", stop], extra_body={"ignore_eos": True}, stream=stream
        )
        parts = [*found] if stream else [found]
        choices = [part.choices[0] for part in parts]
        assert "".join(x.text for x in choices) == whole[: whole.index(stop)]
        assert choices[-1].finish_reason == "stop"
    first = client.completions.create(**wanted, logit_bias={str(tokens[0]): -100})
    assert not first.choices[0].text.startswith(text.decode(tokens[:1]))
    only = client.completions.create(**{**wanted, "max_tokens": 3}, logit_bias={"40": 100})
    assert only.choices[0].text == text.decode([40] * 3)
    penalised = client.completions.create(**wanted, frequency_penalty=2, presence_penalty=2)
    assert penalised.choices[0].text != whole


CHAT = {"model": MODEL, "messages": messages(), "max_tokens": 4}


@pytest.mark.parametrize(("change", "param", "text"), [
    ({"temprature": 1}, "temprature", "temprature: unknown field"),
    ({"temperature": 3}, "temperature", "less than or equal to 2"),
    ({"model": "gpt-5"}, "model", "the model 'gpt-5' does not exist; this server has 'glm-5.1'"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "expected, and missing"),
    ({"messages": [{"role": "wizard", "content": ""}]}, "messages.0", "wizard"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens", "differs"),
    ({"max_tokens": 999999}, "max_tokens", "max_tokens of 999999 does not fit"),
    ({"min_tokens": 5}, "min_tokens", "at most the 4 that may come, found 5"),
    ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20 at most, found 21"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"n": 17}, "n", "16 at most, found 17"),
    ({"stop": ["a"] * 17}, "stop", "16 strings at most, found 17"),
    ({"stop": ""}, "stop.0", "found 0"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "'x'"),
    ({"logit_bias": {"999999": 1}}, "logit_bias", "'999999'"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "expected token IDs below"),
    ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools",
     "the tokenizer has no token"),
    ({"store": True}, "store", "store"),
    ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, "reasoning_effort",
     "contradicts"),
    ({"thinking": {"clear_thinking": True}, "clear_thinking": False}, "clear_thinking", "differs"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "stream"),
    ({"messages": [{"role": "user", "content": "x " * 40000}]}, "messages", "does not fit"),
])  # fmt: skip
def test_what_is_wrong_is_named(
    server: Running, change: dict[str, Any], param: str, text: str
) -> None:
    answer = post(server, "/v1/chat/completions", CHAT | change)
    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400), error
    assert error["param"] == param and text in error["message"], error


def test_json_and_no_calls_by_a_grammar(client: OpenAI, text: Text) -> None:
    """Through HTTP, with drafts; what a special token's bias would give is not in them."""
    wanted: dict[str, Any] = {
        "model": MODEL, "messages": messages(), "max_completion_tokens": 200, "temperature": 0,
        "logit_bias": {str(text.token_id("<|assistant|>")): 60},
        "extra_body": {"thinking": {"type": "disabled"}},
    }  # fmt: skip
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "n": {
        "type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a", "n"],
        "additionalProperties": False}  # fmt: skip
    response_format: Any = {
        "type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}
    }  # fmt: skip
    choice = client.chat.completions.create(**wanted, response_format=response_format).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content or ""), schema)
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    for tool_choice in (None, "none"):
        short = {**wanted, "max_completion_tokens": 5, "tools": tools if tool_choice else None}
        said = client.chat.completions.create(
            **{key: value for key, value in short.items() if value is not None},
            **({"tool_choice": tool_choice} if tool_choice else {}),
        )
        assert bool(said.choices[0].message.content) == (tool_choice == "none")
    schema["properties"]["a"] = {"type": "strin"}  # type: ignore[index]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**wanted, response_format=response_format)
    assert caught.value.param == "response_format.json_schema.schema"
    assert 'found "strin"' in str(caught.value)


def test_openais_client_raises_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages())
    with pytest.raises(openai.BadRequestError, match="unknown field"):
        client.chat.completions.create(
            model=MODEL, messages=messages(), extra_body={"frobnicate": 1}
        )


@pytest.mark.parametrize(("body", "status"), [
    (b"{", 400), (b"[]", 400), (b"", 400), (b"\xff\xfe", 400), (b'"x"', 400),
    (b"[" * 200_000, 400), (b'{"a":' * 100_000, 400),
    (b'{"model": "glm-5.1", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    (b'{"model": "glm-5.1", "prompt": NaN}', 400),
    (b'{"model": "glm-5.1", "temperature": 1e999}', 400),
])  # fmt: skip
def test_bodies_that_are_no_requests(server: Running, body: bytes, status: int) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        answer = post(server, path, body)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(("body", "reason"), [
    (b'{"prompt": "\xff"}', "the body is not JSON: byte 0xff at 12 is no UTF-8"),
    (b'{"a":' * 100_000, "the body is not JSON: nested too deeply"),
])  # fmt: skip
def test_why_a_body_is_not_read(server: Running, body: bytes, reason: str) -> None:
    answer = post(server, "/v1/completions", body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, reason)


def test_bodies_that_are_too_large(server: Running) -> None:
    began = time.monotonic()
    answer = post(server, "/v1/chat/completions", b" " * 100_000_000)
    assert answer.status_code == 413 and "more than 16000000 bytes" in answer.text
    assert time.monotonic() - began < 5

    def pieces() -> Iterator[bytes]:
        for _ in range(400):
            yield b" " * 100_000

    answer = httpx2.post(f"{server.url}/v1/completions", content=pieces(), timeout=30)
    assert answer.status_code == 413
    assert post(
        server, "/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 1}
    ).is_success


def test_the_other_endpoints(server: Running, client: OpenAI, text: Text) -> None:
    assert [x.id for x in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")
    for path in ("/health", "/ready"):
        assert httpx2.get(f"{server.url}{path}").json() == {"status": "ok"}
    assert httpx2.get(f"{server.url}/version").json() == {"version": glm_trt.__version__}
    ids = text.encode(PROMPT)
    found = post(server, "/tokenize", {"prompt": PROMPT}).json()
    assert found["tokens"] == ids and found["count"] == len(ids)
    of_chat = post(server, "/tokenize", {"messages": messages()}).json()
    assert of_chat["tokens"] == text.chat(messages())
    assert post(server, "/detokenize", {"tokens": ids}).json() == {"prompt": PROMPT}
    assert post(server, "/tokenize", {}).status_code == 400
    missing = httpx2.get(f"{server.url}/v2/nothing")
    assert (
        missing.status_code == 404
        and missing.json()["error"]["message"] == "there is no /v2/nothing"
    )
    wrong = httpx2.get(f"{server.url}/v1/completions")
    assert wrong.status_code == 405 and "GET" in wrong.json()["error"]["message"]


def test_keys(start_server: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# of the team\nsecret-1\n\nsecret-2\n")
    running = start_server("--api-key-file", str(keys), key="secret-2")
    assert [x.id for x in running.client.models.list()] == [MODEL]
    for header in ({}, {"Authorization": "Bearer secret-3"}, {"Authorization": "Basic secret-1"},
                   {"Authorization": "Bearer # of the team"}, {"x-api-key": "secret-3"},
                   {"x-api-key": "Bearer secret-1"}):  # fmt: skip
        for path in ("/v1/models", "/tokenize"):
            answer = httpx2.get(f"{running.url}{path}", headers=header)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        answer = httpx2.post(f"{running.url}/v1/messages", headers=header)
        assert answer.status_code == 401 and answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "authentication_error"
    for header in ({"x-api-key": "secret-1"}, {"Authorization": "bearer  secret-1"},
                   {"x-api-key": "secret-2", "Authorization": "Bearer none"}):  # fmt: skip
        assert httpx2.get(f"{running.url}/v1/models", headers=header).is_success
    assert httpx2.get(f"{running.url}/ready").is_success


def test_who_leaves_is_not_served(server: Running) -> None:
    """A whole answer and a stream: the row is free at once."""
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 900, "ignore_eos": True}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{server.url}/v1/completions", json=body, timeout=0.3)
    with httpx2.stream(
        "POST", f"{server.url}/v1/completions", json=body | {"stream": True}
    ) as answer:
        assert next(answer.iter_lines()).startswith("data: ")
    began = time.monotonic()
    for _ in range(4):
        assert post(server, "/v1/completions", body | {"max_tokens": 2}).is_success
    assert time.monotonic() - began < 5


def test_an_end_loses_no_answer(start_server: Start) -> None:
    running = start_server("--max-batch", "2", "--grace", "60")
    texts: list[Any] = []

    def ask(seed: int) -> None:
        found = running.client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=60, seed=seed, extra_body={"ignore_eos": True}
        )
        assert found.usage is not None
        texts.append(found.usage.completion_tokens)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert running.end() == 0
    for thread in threads:
        thread.join()
    assert texts == [60] * 5


def test_a_port_that_is_taken(server: Running, start_server: Start) -> None:
    port = server.url.rpartition(":")[2]
    with pytest.raises(AssertionError, match=f"127.0.0.1:{port} cannot be listened on"):
        start_server("--port", port)
