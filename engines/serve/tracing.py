"""Traces of requests, for an OpenTelemetry collector: when each waited, was read and was answered.

A span for a request, with the attributes of OpenTelemetry's conventions for generative AI and
HTTP, and below it spans of each sequence: queue, prefill, decode. Nothing of what was said is in
them. A trace that the client has begun (`traceparent`) goes on.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Scope

import glm_trt
from glm_trt.model.errors import GlmTrtError

PROVIDER = "glm_trt"
EXPORT_SECONDS = 5.0  # after which spans are lost, and the end of the server is not held up
OPERATIONS = {"/v1/completions": "text_completion"}  # the others that answer are chats


class Tracing:
    """What is sent, in a thread of its own; a collector that does not answer holds up nothing.

    Parameters
    ----------
    model_name : as requests name it.
    exporter : of OpenTelemetry's SDK: where finished spans go.
    """

    def __init__(self, model_name: str, exporter: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        about = {"service.name": "glm-trt", "service.version": glm_trt.__version__}
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("glm_trt.engines.serve", glm_trt.__version__)
        self._model = model_name

    @classmethod
    def to(cls, endpoint: str, model_name: str) -> Tracing:
        """To a collector, over HTTP.

        Parameters
        ----------
        endpoint : such as http://localhost:4318; `/v1/traces` is added where it has no path.

        Raises
        ------
        GlmTrtError
            If it is no URL of HTTP.
        """
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise GlmTrtError(f"--otlp-endpoint: expected http://HOST:PORT, found {endpoint!r}")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        url = endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
        return cls(model_name, OTLPSpanExporter(endpoint=url, timeout=EXPORT_SECONDS))

    def request(self, scope: Scope, route: str, status: int, began: float, ended: float) -> str:
        """Trace a request that has ended.

        Parameters
        ----------
        scope : of ASGI; `answers` in its state are what came.
        began, ended : in seconds of `time.monotonic`.

        Returns
        -------
        The trace's ID, in hexadecimal.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        offset = time.time() - time.monotonic()  # of this process' clock to that of all

        def at(seconds: float) -> int:
            return round((seconds + offset) * 1e9)

        answers = scope["state"].get("answers")
        headers = {name.decode("latin-1"): value.decode("latin-1")
                   for name, value in scope["headers"]}  # fmt: skip
        attributes: dict[str, Any] = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
            "glm_trt.request_id": scope["state"]["request_id"],
        }
        name, error = f"{scope['method']} {route}", str(status) if status >= 500 else None
        if answers is not None:
            operation = OPERATIONS.get(route, "chat")
            name = f"{operation} {self._model}"
            described = answers.described()
            attributes |= self._generation(operation, answers.jobs, described)
            if "error" in described["finish_reasons"]:
                error = error or "engine_error"
        if error is not None:
            attributes["error.type"] = error
        span = self._tracer.start_span(
            name, TraceContextTextMapPropagator().extract(headers), SpanKind.SERVER, attributes,
            start_time=at(began),
        )  # fmt: skip
        if error is not None:
            span.set_status(Status(StatusCode.ERROR))
        context = set_span_in_context(span)
        for number, line in enumerate([] if answers is None else answers.timelines):
            of_choice = {"glm_trt.choice": number}
            stages = (("queue", line.submitted, line.admitted), ("prefill", line.admitted,
                      line.first), ("decode", line.first, line.latest))  # fmt: skip
            for stage, start, end in stages:
                if start is not None:
                    # What was not reached when the client left, or the engine failed, ends there.
                    child = self._tracer.start_span(
                        stage, context, SpanKind.INTERNAL, of_choice, start_time=at(start)
                    )
                    child.end(at(ended if end is None else end))
        span.end(at(ended))
        return f"{span.get_span_context().trace_id:032x}"

    def _generation(self, operation: str, jobs: Any, described: Any) -> dict[str, Any]:
        """Attributes of the conventions for generative AI."""
        options = jobs[0].options
        found = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.request.max_tokens": options.max_new_tokens,
            "gen_ai.request.temperature": float(options.sampling.temperature),
            "gen_ai.request.top_p": float(options.sampling.top_p),
            "gen_ai.request.choice.count": len(jobs) if len(jobs) > 1 else None,
            "gen_ai.usage.input_tokens": described["prompt_tokens"],
            "gen_ai.usage.output_tokens": described["completion_tokens"],
            "gen_ai.usage.cache_read.input_tokens": described["cached_tokens"],
            "gen_ai.usage.reasoning.output_tokens": described["reasoning_tokens"] or None,
            "gen_ai.response.finish_reasons": described["finish_reasons"],
            "gen_ai.response.time_to_first_chunk": described["first_token_s"],
        }
        return {name: value for name, value in found.items() if value is not None}

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
