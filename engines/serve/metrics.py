"""What a Prometheus server reads at `/metrics`.

Where a number means what vLLM's means it has vLLM's name, so that dashboards made for one show the
other; what only this server has is named `glm_trt:`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glm_trt.engines.python.request import Request
from glm_trt.engines.serve.engine_loop import EngineLoop
from glm_trt.engines.serve.timeline import Timeline

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
STOP, LENGTH, ABORT, ERROR = "stop", "length", "abort", "error"


class Metrics:
    """Counters of one server, in a registry of its own. For any thread.

    Parameters
    ----------
    model_name : the label `model_name` of all of them.
    """

    def __init__(self, model_name: str, engine: EngineLoop) -> None:
        self._registry, self._name = CollectorRegistry(), model_name

        def histogram(name: str, text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
            made = Histogram(name, text, ["model_name"], registry=self._registry, buckets=buckets)
            return made.labels(model_name)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ["model_name", *labels], registry=self._registry)

        self._to_first = histogram(
            "vllm:time_to_first_token_seconds", "From the request to its first token."
        )
        self._between = histogram(
            "vllm:inter_token_latency_seconds",
            "From the tokens of one pass to those of the next, in a sequence.",
            BETWEEN,
        )
        self._each = histogram(
            "vllm:request_time_per_output_token_seconds",
            "From the first token to the last, over the tokens behind the first.",
            BETWEEN,
        )
        self._whole = histogram(
            "vllm:e2e_request_latency_seconds", "From the request to its last token."
        )
        self._queue = histogram(
            "vllm:request_queue_time_seconds", "From there on until its prompt is begun."
        )
        self._prefill = histogram(
            "vllm:request_prefill_time_seconds", "From there to the first token."
        )
        self._decode = histogram(
            "vllm:request_decode_time_seconds", "From the first token to the last."
        )
        self._inference = histogram(
            "vllm:request_inference_time_seconds", "From the first pass to the last token."
        )
        self._prompt = histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self._new = histogram(
            "vllm:request_generation_tokens", "New tokens of a sequence.", TOKENS
        )  # fmt: skip
        prompts = counter("vllm:prompt_tokens", "Tokens of prompts, kept or run.")
        sources = counter("vllm:prompt_tokens_by_source", "Of them, by the source.", "source")
        self._prompts = prompts.labels(model_name)
        self._run = sources.labels(model_name, "local_compute")
        self._kept = sources.labels(model_name, "local_cache_hit")
        queries = counter("vllm:prefix_cache_queries", "Tokens of prompts looked up.")
        hits = counter("vllm:prefix_cache_hits", "Those that a kept prefix had.")
        self._queries, self._hits = queries.labels(model_name), hits.labels(model_name)
        self._keeps = engine.prefixes.capacity > 0
        ended = counter(
            "vllm:request_success", "Sequences that ended, by the reason.", "finished_reason"
        )
        # Each from the beginning: a rate needs two values.
        self._ended = {
            reason: ended.labels(model_name, reason) for reason in (STOP, LENGTH, ABORT, ERROR)
        }
        self._responses = counter(
            "glm_trt:http_responses", "Responses by path and status.", "path", "status"
        )
        self._registry.register(_Engine(model_name, engine))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def prompt(self, request: Request) -> None:
        """A prompt has been run to its end."""
        length = len(request.prompt)
        self._prompts.inc(length)
        self._kept.inc(request.reused)
        self._run.inc(length - request.reused)
        if self._keeps:
            self._queries.inc(length)
            self._hits.inc(request.reused)

    def first_token(self, timeline: Timeline) -> None:
        """A sequence has its first."""
        _observe(self._to_first, timeline.to_first_token)

    def next_tokens(self, seconds: float) -> None:
        """It has the tokens of a further pass, so long after those before."""
        self._between.observe(seconds)

    def ended(self, timeline: Timeline, prompt_tokens: int, new_tokens: int, reason: str) -> None:
        """A sequence has ended.

        Parameters
        ----------
        reason : one of those above.
        """
        self._ended[reason].inc()
        if timeline.admitted is None:
            return  # it never had a row: there is nothing to measure
        self._prompt.observe(prompt_tokens)
        self._new.observe(new_tokens)
        _observe(self._whole, timeline.whole)
        _observe(self._queue, timeline.queue)
        _observe(self._prefill, timeline.prefill)
        _observe(self._decode, timeline.decode)
        _observe(self._inference, timeline.inference)
        if timeline.decode is not None and new_tokens > 1:
            self._each.observe(timeline.decode / (new_tokens - 1))

    def may_respond(self, path: str, status: int) -> None:
        """Such a response is counted from now on, at 0: a rate needs two values."""
        self._responses.labels(self._name, path, str(status))

    def responded(self, path: str, status: int) -> None:
        """A request was answered, or refused.

        Parameters
        ----------
        path : as the routes have it, so that there are few.
        """
        self._responses.labels(self._name, path, str(status)).inc()

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)


def _observe(histogram: Histogram, seconds: float | None) -> None:
    if seconds is not None:
        histogram.observe(seconds)


class _Engine(Collector):
    """What the engine itself counts, read when somebody asks: it costs the engine nothing."""

    def __init__(self, model_name: str, engine: EngineLoop) -> None:
        self._name, self._engine = model_name, engine
        self._most: dict[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        """The values of now."""
        engine, of = self._engine, self._engine.session.statistics
        yield self._gauge("vllm:num_requests_running", "Sequences with a row.", engine.running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences without one.", engine.waiting)
        yield self._gauge(
            "glm_trt:max_running", "Rows: sequences at once.", engine.session.max_batch
        )
        yield self._gauge(
            "glm_trt:prefix_cache_bytes", "States kept for later prompts.", engine.prefixes.held
        )
        yield self._gauge(
            "glm_trt:prefix_cache_max_bytes", "As many may be.", engine.prefixes.capacity
        )
        yield self._counter("vllm:generation_tokens", "Tokens that came.", of.new_tokens)
        yield self._counter("glm_trt:passes", "Passes over sequences that decode.", of.passes)
        yield self._counter("glm_trt:failed_passes", "Passes that failed.", engine.failed_passes)
        if not of.drafted:
            return
        yield self._counter(
            "vllm:spec_decode_num_drafts", "Times that a sequence had drafts.", of.drafted[0]
        )
        yield self._counter(
            "vllm:spec_decode_num_draft_tokens", "Drafts verified.", sum(of.drafted)
        )  # fmt: skip
        yield self._counter(
            "vllm:spec_decode_num_accepted_tokens", "Drafts found right.", sum(of.accepted)
        )
        name = "vllm:spec_decode_num_accepted_tokens_per_pos"
        places = CounterMetricFamily(
            name, "Those by their place.", labels=["model_name", "position"]
        )
        for place, count in enumerate(of.accepted):
            places.add_metric([self._name, str(place)], self._risen(f"{name} {place}", count))
        yield places

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        metric = GaugeMetricFamily(name, text, labels=["model_name"])
        metric.add_metric([self._name], value)
        return metric

    def _counter(self, name: str, text: str, value: float) -> Metric:
        metric = CounterMetricFamily(name, text, labels=["model_name"])
        metric.add_metric([self._name], self._risen(name, value))
        return metric

    def _risen(self, name: str, value: float) -> float:
        """At least what it was: a pass that is taken back takes its numbers back, too, and a
        counter that falls is one that began anew for Prometheus.
        """
        self._most[name] = max(value, self._most.get(name, 0.0))
        return self._most[name]
