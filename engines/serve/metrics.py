"""What a Prometheus server reads at `/metrics`.

Where a number means what vLLM's means it has vLLM's name, so that dashboards made for one show the
other; what only this server has is named `glm_trt:`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glm_trt.engines.serve.engine_loop import EngineLoop, Job

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)


class Metrics:
    """Counters of one server, in a registry of its own. For any thread.

    Parameters
    ----------
    model_name : the label `model_name` of all of them.
    """

    def __init__(self, model_name: str, engine: EngineLoop) -> None:
        self._registry, self._name = CollectorRegistry(), model_name

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            made = Histogram(name, text, ["model_name"], registry=self._registry, buckets=buckets)
            return made.labels(model_name)

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            names = ["model_name", *labels]
            return Counter(name, text, names, registry=self._registry)

        self._first = histogram(
            "vllm:time_to_first_token_seconds", "From the request to its first token.", SECONDS
        )
        self._between = histogram(
            "vllm:inter_token_latency_seconds", "From one token of a sequence to the next.", BETWEEN
        )
        self._whole = histogram(
            "vllm:e2e_request_latency_seconds", "From the request to its end.", SECONDS
        )
        self._queued = histogram(
            "vllm:request_queue_time_seconds", "From the request to its row.", SECONDS
        )
        self._prompt = histogram(
            "vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS
        )  # fmt: skip
        self._new = histogram(
            "vllm:request_generation_tokens", "New tokens of a sequence.", TOKENS
        )  # fmt: skip
        self._ended = counter(
            "vllm:request_success_total",
            "Sequences that ended, by the reason.",
            ["finished_reason"],
        )
        self._responses = counter(
            "glm_trt:http_responses_total", "Responses by path and status.", ["path", "status"]
        )
        self._registry.register(_Engine(model_name, engine))

    def first_token(self, seconds: float) -> None:
        """A sequence has its first."""
        self._first.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """It has another."""
        self._between.observe(seconds)

    def ended(self, job: Job, new_tokens: int, reason: str) -> None:
        """A sequence has ended."""
        assert job.ended is not None, "it has"
        self._ended.labels(self._name, reason).inc()
        self._whole.observe(job.ended - job.submitted)
        self._prompt.observe(len(job.prompt))
        self._new.observe(new_tokens)
        if job.admitted is not None:
            self._queued.observe(job.admitted - job.submitted)

    def responded(self, path: str, status: int) -> None:
        """A request was answered, or refused."""
        self._responses.labels(self._name, path, str(status)).inc()

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Engine(Collector):
    """What the engine itself knows, read when it is asked for."""

    def __init__(self, model_name: str, engine: EngineLoop) -> None:
        self._name, self._engine = model_name, engine

    def collect(self) -> Iterator[Metric]:
        """The values of now."""
        engine, of = self._engine, self._engine.session.statistics

        def one(made: Callable[..., Metric], name: str, text: str, value: float) -> Metric:
            metric = made(name, text, labels=["model_name"])
            metric.add_metric([self._name], value)  # type: ignore[attr-defined]
            return metric

        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        yield one(gauge, "vllm:num_requests_running", "Sequences that have a row.", engine.running)
        yield one(gauge, "vllm:num_requests_waiting", "Sequences that wait.", engine.waiting)
        yield one(
            counter, "vllm:prompt_tokens", "Tokens of prompts that were run.", of.prompt_tokens
        )
        yield one(counter, "vllm:generation_tokens", "Tokens that came.", of.new_tokens)
        yield one(
            counter, "vllm:prefix_cache_queries", "Tokens of prompts.", engine.queried_tokens
        )  # fmt: skip
        yield one(
            counter, "vllm:prefix_cache_hits", "Those that a kept prefix had.", engine.reused_tokens
        )
        yield one(
            counter, "vllm:spec_decode_num_draft_tokens", "Drafts verified.", sum(of.drafted)
        )  # fmt: skip
        yield one(
            counter, "vllm:spec_decode_num_accepted_tokens", "Drafts found right.", sum(of.accepted)
        )
        yield one(counter, "glm_trt:passes", "Passes over sequences that decode.", of.passes)
        yield one(
            gauge, "glm_trt:prefix_cache_bytes", "States kept for later.", engine.prefixes.held
        )  # fmt: skip
        yield one(counter, "glm_trt:failed_passes", "Passes that failed.", engine.failed_passes)
