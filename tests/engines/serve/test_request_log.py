"""The log of requests: one line of JSON each, nothing of what was said, an ID that goes around."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from servers import Running, Start

MODEL = "glm-5.1"
SECRET = "wombat"
BODY = {"model": MODEL, "prompt": f"def {SECRET}(", "max_tokens": 3, "temperature": 0}


def post(running: Running, body: Any, identity: str | None = None, **options: Any) -> Any:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    headers = {"Content-Type": "application/json"} | options.pop("headers", {})
    if identity is not None:
        headers["X-Request-ID"] = identity
    path = options.pop("path", "/v1/completions")
    return httpx2.post(f"{running.url}{path}", content=content, headers=headers, timeout=60)


def test_a_line_says_what_a_request_cost_and_not_what_it_said(server: Running) -> None:
    answer = post(server, BODY | {"n": 2}, "one-7")
    line = server.logged("one-7")
    usage = answer.json()["usage"]
    assert line["method"] == "POST" and line["path"] == "/v1/completions" and line["status"] == 200
    assert line["client"] == "127.0.0.1" and line["event"] == "request"
    for name in ("prompt_tokens", "completion_tokens"):
        assert line[name] == usage[name]
    # The second choice has its prompt from the first.
    assert line["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert line["finish_reasons"] == ["length", "length"]
    parts = [line[name] for name in ("queue_s", "prefill_s", "first_token_s", "decode_s")]
    assert all(0 <= part <= line["total_s"] for part in parts)
    assert time.strptime(line["time"], "%Y-%m-%dT%H:%M:%SZ")
    raw = [x for x in server.errors if "one-7" in x]
    assert len(raw) == 1 and SECRET not in raw[0]
    assert not {"prompt", "answers"} & set(line)


def test_prompts_of_a_request_are_counted_once_each(server: Running) -> None:
    body = {"model": MODEL, "prompt": [[5, 6, 7], [9, 10]], "n": 2, "max_tokens": 1}
    answer = post(server, body, "two-prompts")
    line = server.logged("two-prompts")
    assert line["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"] == 5
    assert line["completion_tokens"] == 4


def test_prompts_and_answers_only_if_asked(start_server: Start) -> None:
    running = start_server("--log-prompts")
    answer = post(running, BODY, "told")
    line = running.logged("told")
    assert line["prompt"] == BODY["prompt"]
    assert line["answers"] == [answer.json()["choices"][0]["text"]]


def test_the_body_names_the_request_before_the_header_does(server: Running) -> None:
    answer = post(server, BODY | {"request_id": "of-body"}, "of-header")
    assert answer.headers["x-request-id"] == "of-body"
    assert answer.json()["id"] == "cmpl-of-body"
    assert server.logged("of-body")["status"] == 200
    answer = post(server, BODY | {"request_id": "of-wrong-body", "n": 0}, "of-header")
    assert answer.status_code == 400 and answer.headers["x-request-id"] == "of-wrong-body"


@pytest.mark.parametrize("wrong", ["", "with space", "with\u00e9", "x" * 129, "a\tb"])
def test_an_id_that_a_header_cannot_hold_is_not_repeated(server: Running, wrong: str) -> None:
    answer = post(server, BODY | {"request_id": wrong})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "request_id"
    found = answer.headers["x-request-id"]
    assert len(found) == 32 and server.logged(found)["status"] == 400
    raw = httpx2.get(f"{server.url}/v1/models", headers={"x-request-id": wrong.encode("latin-1")})
    assert raw.is_success and len(raw.headers["x-request-id"]) == 32


def test_every_response_has_the_id(start_server: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    running = start_server("--api-key-file", str(keys), "--max-body", "0.01", key="secret")
    allowed = {"Authorization": "Bearer secret"}
    for status, identity, path, body, headers in (
        (401, "no-key", "/v1/completions", BODY, {}),
        (413, "large", "/v1/completions", b" " * 20_000, allowed),
        (404, "nowhere", "/v2/nothing", BODY, allowed),
        (405, "not-so", "/v1/models", BODY, allowed),
        (400, "no-json", "/v1/completions", b"{", allowed),
        (400, "unknown-field", "/v1/completions", BODY | {"frobnicate": 1}, allowed),
        (404, "model", "/v1/completions", BODY | {"model": "other"}, allowed),
        (200, "tokens", "/tokenize", {"prompt": "a"}, allowed),
    ):
        answer = post(running, body, identity, path=path, headers=headers)
        assert answer.status_code == status and answer.headers["x-request-id"] == identity
        line = running.logged(identity)
        assert line["status"] == status and line["path"] == path and "prompt_tokens" not in line
    httpx2.get(f"{running.url}/health", headers={"x-request-id": "quiet"})
    assert running.end() == 0
    assert "quiet" not in {line["request_id"] for line in running.log()}


def test_who_leaves_is_named(server: Running) -> None:
    """A whole answer that nobody waits for, and a stream that nobody reads on."""
    parts = urlsplit(server.url)
    for identity, stream in (("left-whole", False), ("left-stream", True)):
        body = json.dumps(BODY | {
            "max_tokens": 2000, "ignore_eos": True, "stream": stream, "request_id": identity,
        }).encode()  # fmt: skip
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            if stream:
                assert b"200" in connection.recv(1000)
            else:
                time.sleep(0.3)
        line = server.logged(identity)
        assert line["disconnected"] is True and line["finish_reasons"] == ["abort"]
        assert line["status"] == (200 if stream else 499)
        assert line["completion_tokens"] < 2000
