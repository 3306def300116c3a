"""Traces as a collector gets them."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import httpx2
import pytest
from otlp_receiver import receiver
from servers import Start

from glm_trt.cli import main
from glm_trt.engines.serve.tracing import Tracing
from glm_trt.model.errors import GlmTrtError

pytest.importorskip("opentelemetry.sdk", reason="the extra tracing is not installed")
MODEL = "glm-5.1"
SECRET = "wombat"
SERVER, INTERNAL = 2, 1


def post(url: str, body: Any, identity: str, **headers: str) -> Any:
    return httpx2.post(f"{url}/v1/completions", content=json.dumps(body), timeout=60, headers={
        "Content-Type": "application/json", "X-Request-ID": identity, **headers})  # fmt: skip


def test_a_request_is_a_span_with_its_stages_below(start_server: Start) -> None:
    with receiver() as collector:
        running = start_server("--otlp-endpoint", collector.url)
        began = time.time()
        body = {"model": MODEL, "prompt": f"def {SECRET}(", "max_tokens": 6, "n": 2,
                "temperature": 0.5, "top_p": 0.9, "ignore_eos": True}  # fmt: skip
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        answer = post(running.url, body, "traced", traceparent=parent).json()
        post(running.url, {"model": "other", "prompt": SECRET}, "refused")
        httpx2.get(f"{running.url}/health", headers={"X-Request-ID": "quiet"})
        assert running.end() == 0  # which sends what is left
        ended = time.time()
        span, children = collector.of("traced")
        assert (span.name, span.kind) == (f"text_completion {MODEL}", SERVER)
        assert span.trace == "0af7651916cd43dd8448eb211c80319c"
        assert span.parent == "b7ad6b7169203331"
        assert began - 1 < span.begin < span.end < ended + 1 and not span.failed
        usage = answer["usage"]
        assert span.attributes == {
            "http.request.method": "POST",
            "http.route": "/v1/completions",
            "http.response.status_code": 200,
            "glm_trt.request_id": "traced",
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "glm_trt",
            "gen_ai.request.model": MODEL,
            "gen_ai.response.model": MODEL,
            "gen_ai.request.max_tokens": 6,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.top_p": 0.9,
            "gen_ai.request.choice.count": 2,
            "gen_ai.usage.input_tokens": usage["prompt_tokens"],
            "gen_ai.usage.output_tokens": usage["completion_tokens"],
            "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "gen_ai.response.finish_reasons": ["length", "length"],
            "gen_ai.response.time_to_first_chunk": span.attributes[
                "gen_ai.response.time_to_first_chunk"
            ],
        }
        assert [(x.name, x.kind) for x in children] == [
            (name, INTERNAL) for name in ("queue", "prefill", "decode")
        ] * 2
        for number in range(2):
            queue, prefill, decode = (
                x for x in children if x.attributes == {"glm_trt.choice": number}
            )
            moments = [span.begin, queue.begin, queue.end, prefill.end, decode.end, span.end]
            assert moments == sorted(moments) and {x.trace for x in children} == {span.trace}
            assert queue.end == pytest.approx(prefill.begin, abs=1e-6)
            assert prefill.end == pytest.approx(decode.begin, abs=1e-6)
        refused, below = collector.of("refused")
        assert refused.name == "POST /v1/completions" and not below and not refused.parent
        assert refused.attributes["http.response.status_code"] == 404 and not refused.failed
        assert len(collector.spans) == 8  # and none of /health
        assert set(collector.paths) == {"/v1/traces"}
        assert collector.resources[0]["service.name"] == "glm-trt"
        assert not any(SECRET.encode() in body for body in collector.raw)
        assert running.logged("traced")["trace_id"] == span.trace
        assert running.logged("refused")["trace_id"] == refused.trace


def test_nobody_waits_for_a_collector_that_is_not_there(start_server: Start) -> None:
    running = start_server("--otlp-endpoint", "http://127.0.0.1:9")
    answer = post(running.url, {"model": MODEL, "prompt": "a", "max_tokens": 1}, "alone")
    assert answer.is_success and len(running.logged("alone")["trace_id"]) == 32
    began = time.monotonic()
    assert running.end() == 0
    assert time.monotonic() - began < 8


def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    assert main(["serve", "bundle", "--otlp-endpoint", "http://127.0.0.1:4318"]) == 3
    assert "--otlp-endpoint needs opentelemetry.sdk" in (errors := capsys.readouterr().err)
    assert "pip install 'glm-trt[tracing]'" in errors


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://x:4317", "http://"])
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    with pytest.raises(GlmTrtError, match=f"expected http://HOST:PORT, found '{endpoint}'"):
        Tracing.to(endpoint, MODEL)
