"""What `/metrics` says, by Prometheus' own parser, beside what clients got."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import Running, Start

from glm_trt.engines.serve.timeline import Timeline

MODEL = "glm-5.1"
PROMPT = "def main(arguments):\n    "
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(running: Running) -> Samples:
    """The value of each, by its name and its labels but the model's."""
    answer = httpx2.get(f"{running.url}/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if sample.name.startswith(("vllm:", "glm_trt:")):
                assert labels.pop("model_name") == MODEL, sample
            key = sample.name, tuple(sorted(labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def count(found: Samples, name: str) -> float:
    return value(found, f"vllm:{name}_count")


def post(running: Running, body: Any, path: str = "/v1/completions") -> Any:
    body = {"model": MODEL, "max_tokens": 8, "temperature": 0} | body
    return httpx2.post(f"{running.url}{path}", content=json.dumps(body), timeout=60,
                       headers={"Content-Type": "application/json"})  # fmt: skip


def test_numbers_are_those_that_clients_got(start_server: Start) -> None:
    running = start_server("--max-batch", "2", "--prefix-cache", "0.5")
    before = samples(running)
    for reason in ("stop", "length", "abort", "error"):
        assert value(before, "vllm:request_success_total", finished_reason=reason) == 0
    bodies: list[dict[str, Any]] = [
        {"prompt": PROMPT, "ignore_eos": True},
        {"prompt": PROMPT + "return", "ignore_eos": True, "max_tokens": 5, "n": 2},
        {"prompt": "import", "max_tokens": 1},
        {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 0},
        {"prompt": PROMPT, "stop": " ", "ignore_eos": True, "max_tokens": 40},
    ]  # fmt: skip
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda body=body: answers.append(post(running, body).json()))
        for body in bodies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert post(running, {"prompt": "a", "frobnicate": 1}).status_code == 400
    assert post(running, {"messages": []}, "/v1/chat/completions").status_code == 400
    assert httpx2.get(f"{running.url}/v2/{PROMPT[:3]}").status_code == 404
    found = samples(running)
    choices = [choice for answer in answers for choice in answer["choices"]]
    new = sum(answer["usage"]["completion_tokens"] for answer in answers)
    prompts = sum(x["usage"]["prompt_tokens"] * len(x["choices"]) for x in answers)
    cached = value(found, "vllm:prefix_cache_hits_total")
    assert value(found, "vllm:generation_tokens_total") == new
    assert value(found, "vllm:prompt_tokens_total") == prompts
    assert value(found, "vllm:prefix_cache_queries_total") == prompts
    by_source = {
        source: value(found, "vllm:prompt_tokens_by_source_total", source=source)
        for source in ("local_compute", "local_cache_hit")
    }
    assert by_source == {"local_compute": prompts - cached, "local_cache_hit": cached}
    for reason in ("stop", "length"):
        expected = [choice["finish_reason"] for choice in choices].count(reason)
        assert value(found, "vllm:request_success_total", finished_reason=reason) == expected
    assert count(found, "request_prompt_tokens") == len(choices) == 6
    assert value(found, "vllm:request_prompt_tokens_sum") == prompts
    assert value(found, "vllm:request_generation_tokens_sum") == new
    for name in ("request_queue_time_seconds", "e2e_request_latency_seconds"):
        assert count(found, name) == 6
    # One of them has no token.
    for name in ("time_to_first_token_seconds", "request_prefill_time_seconds",
                 "request_decode_time_seconds", "request_inference_time_seconds"):  # fmt: skip
        assert count(found, name) == 5
    assert count(found, "inter_token_latency_seconds") == new - 5
    assert value(found, "vllm:inter_token_latency_seconds_sum") == pytest.approx(
        value(found, "vllm:request_decode_time_seconds_sum")
    )
    ends = "time_to_first_token", "request_queue_time", "request_prefill_time"
    first, queue, prefill = (value(found, f"vllm:{name}_seconds_sum") for name in ends)
    assert 0 < prefill <= first and queue + prefill <= value(
        found, "vllm:e2e_request_latency_seconds_sum"
    )
    for path, status, expected in (
        ("/v1/completions", 200, 5), ("/v1/completions", 400, 1),
        ("/v1/chat/completions", 400, 1), ("other", 404, 1), ("/metrics", 200, 1),
    ):  # fmt: skip
        assert value(found, "glm_trt:http_responses_total", path=path, status=str(status)) == (
            expected
        )
    assert (
        value(found, "vllm:num_requests_running") == 0 == value(found, "vllm:num_requests_waiting")
    )
    assert value(found, "glm_trt:max_running") == 2
    assert value(found, "process_resident_memory_bytes") > 1e7
    assert ("python_gc_collections_total", (("generation", "0"),)) in found
    assert not any("spec_decode" in name for name, _ in found)
    second_turn(running)


def second_turn(running: Running) -> None:
    before = samples(running)
    first = post(running, {"prompt": PROMPT * 4})
    again = post(running, {"prompt": PROMPT * 4 + first.json()["choices"][0]["text"] + " and"})
    usages, found = [x.json()["usage"] for x in (first, again)], samples(running)

    def risen(name: str) -> float:
        return value(found, name) - value(before, name)

    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert risen("vllm:prefix_cache_hits_total") == sum(cached) and cached[1] > 20
    assert risen("vllm:prefix_cache_queries_total") == sum(x["prompt_tokens"] for x in usages)
    assert 0 < value(found, "glm_trt:prefix_cache_bytes") <= value(
        found, "glm_trt:prefix_cache_max_bytes"
    ) == 5e8  # fmt: skip


def test_drafts_are_counted_by_their_place(start_server: Start) -> None:
    running = start_server("--drafts", "2", "--prefix-cache", "0")
    answer = post(running, {"prompt": PROMPT, "max_tokens": 40, "ignore_eos": True})
    found = samples(running)
    assert answer.json()["usage"]["completion_tokens"] == 40
    accepted = value(found, "vllm:spec_decode_num_accepted_tokens_total")
    passes = value(found, "glm_trt:passes_total")
    places = [
        value(found, "vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(i))
        for i in range(2)
    ]
    assert sum(places) == accepted and places[0] >= places[1]
    drafts = value(found, "vllm:spec_decode_num_drafts_total")
    assert drafts <= value(found, "vllm:spec_decode_num_draft_tokens_total") <= 2 * drafts
    assert 1 + passes + accepted == 40
    assert value(found, "vllm:prefix_cache_queries_total") == 0  # nothing is looked up
    assert value(found, "vllm:prompt_tokens_total") > 0
    # Accepted drafts come with the token before them: one interval for each pass.
    assert count(found, "inter_token_latency_seconds") == passes


def test_refused_requests_are_counted_by_their_path(start_server: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    running = start_server("--max-batch", "1", "--max-waiting", "0", "--max-body", "0.01",
                           "--api-key-file", str(keys), key="secret")  # fmt: skip
    assert post(running, {"prompt": "a"}).status_code == 401
    stream = running.client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    allowed = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    for status, body in ((429, b'{"model": "glm-5.1", "prompt": "a"}'), (413, b" " * 20_000)):
        answer = httpx2.post(f"{running.url}/v1/completions", content=body, headers=allowed)
        assert answer.status_code == status
    found = samples(running)
    assert value(found, "vllm:num_requests_running") == 1
    for status in (401, 413, 429):
        assert value(found, "glm_trt:http_responses_total", path="/v1/completions",
                     status=str(status)) == 1  # fmt: skip
    stream.close()
    while value(found := samples(running), "vllm:num_requests_running"):
        pass
    assert value(found, "vllm:request_success_total", finished_reason="abort") == 1
    assert count(found, "e2e_request_latency_seconds") == 1


def test_a_timeline_has_what_has_come() -> None:
    line = Timeline(1.0, 1.5)
    assert (line.queue, line.prefill, line.decode, line.whole) == (None,) * 4
    line.admitted, line.first, line.latest, line.ended = 2.0, 4.0, 7.0, 7.5
    assert (line.queue, line.prefill, line.decode, line.inference) == (0.5, 2.0, 3.0, 5.0)
    assert (line.to_first_token, line.whole) == (3.0, 6.5)
