"""A collector of OpenTelemetry traces, as far as a test needs one: it keeps the spans."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Span:
    """One of them; begin and end in seconds since 1970."""

    name: str
    kind: int
    trace: str
    identity: str
    parent: str
    begin: float
    end: float
    attributes: dict[str, Any]
    failed: bool


@dataclass
class Receiver:
    """Where to send, and what came."""

    url: str
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def of(self, request_id: str) -> tuple[Span, list[Span]]:
        """The span of a request, waited for, and its children."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for span in [*self.spans]:
                if span.attributes.get("glm_trt.request_id") == request_id:
                    return span, [x for x in self.spans if x.parent == span.identity]
            time.sleep(0.05)
        raise AssertionError(f"no span of {request_id}: {[x.name for x in self.spans]}")


@contextmanager
def receiver() -> Iterator[Receiver]:
    """One on a free port of this machine."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            message = ExportTraceServiceRequest.FromString(body)
            found.raw.append(body)
            found.paths.append(self.path)
            for of_resource in message.resource_spans:
                found.resources.append(_plain(of_resource.resource.attributes))
                for scope in of_resource.scope_spans:
                    found.spans.extend(_span(span) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def _span(span: Any) -> Span:
    return Span(
        span.name, span.kind, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
        span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9, _plain(span.attributes),
        span.status.code == 2,
    )  # fmt: skip


def _plain(attributes: Any) -> dict[str, Any]:
    return {item.key: _value(item.value) for item in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(x) for x in value.array_value.values]
    return getattr(value, kind)
