"""One line of JSON for each request, on the standard error: what it cost, not what it said."""

from __future__ import annotations

import json
import re
import sys
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from typing import Any, TextIO

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_trt.engines.python.text import Text
from glm_trt.engines.serve.metrics import Metrics
from glm_trt.engines.serve.tracing import Tracing

SILENT = ("/health", "/ready", "/metrics")  # asked every few seconds
HEADER = "x-request-id"
HEADERS = (HEADER, "request-id")  # of responses; Anthropic's clients read the second
WATCHED = (200, 400, 429, 500, 503)  # that dashboards and alerts ask for
LEFT = 499  # as others write it: the client went before there was a status
IDENTITY = re.compile(r"[!-~]{1,128}")


class RequestLog:
    """An ASGI middleware that gives each request an ID, counts it, traces it and writes its line.

    The ID is the body's `request_id`, else the header `x-request-id`, else one of its own; every
    response has it as that header, and as `request-id`. Times are in seconds.

    Parameters
    ----------
    paths : of the application's routes.
    text : to write prompts and answers with, which is for whoever may read them; None not to.
    stream : the standard error, if None.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        paths: Collection[str],
        text: Text | None = None,
        tracing: Tracing | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths
        self._text, self._tracing = text, tracing
        self._stream = sys.stderr if stream is None else stream
        for path in paths:
            if path.startswith("/v1/"):
                for status in WATCHED:
                    metrics.may_respond(path, status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, then write its line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["arrived"] = began = time.monotonic()
        state["request_id"] = _given(scope) or uuid.uuid4().hex
        status, whole, left = 0, False, False

        async def received() -> Message:
            nonlocal left
            message = await receive()
            left = left or (message["type"] == "http.disconnect" and not whole)
            return message

        async def sent(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = LEFT if left else message["status"]
                identity = state["request_id"].encode()
                named = [(name.encode(), identity) for name in HEADERS]
                message = {**message, "headers": [*message.get("headers", ()), *named]}
            else:
                whole = whole or not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, received, sent)
        except Exception:
            status = status or 500  # what is around this answers so
            raise
        finally:
            # The path as it is in the OpenAPI document, so that there are few of them.
            path = self._route(scope)
            status = status or LEFT
            self._metrics.responded(path, status)
            if path not in SILENT:
                self._record(scope, path, status, left, began)

    def _route(self, scope: Scope) -> str:
        """The path of the route that answered, or would have if nothing before it had refused."""
        route, path = scope.get("route"), scope["path"]
        if route is not None:
            return str(route.path)
        return path if path in self._paths else "other"

    def _record(self, scope: Scope, path: str, status: int, left: bool, began: float) -> None:
        now, state = time.monotonic(), scope["state"]
        fields: dict[str, Any] = {
            "event": "request",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": state["request_id"],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "client": (scope.get("client") or [None])[0],
            "total_s": now - began,
        }
        answers = state.get("answers")
        if self._tracing is not None:
            fields["trace_id"] = self._tracing.request(scope, path, status, began, now)
        if left:
            fields["disconnected"] = True
        if answers is not None:
            fields |= answers.described()
            if self._text is not None:
                jobs = answers.jobs
                fields["prompt"] = self._text.decode(jobs[0].prompt)
                fields["answers"] = [
                    self._text.decode(x.request.tokens if x.request else []) for x in jobs
                ]
        present = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in fields.items() if value is not None
        }  # fmt: skip
        with suppress(OSError):  # nobody reads the log any more: no reason not to answer
            print(json.dumps(present, ensure_ascii=False), file=self._stream, flush=True)


async def take_request_id(request: Request) -> None:
    """Give the request the ID that its body names, before what is wrong with the body is told."""
    body = await request.body()
    if b'"request_id"' not in body:
        return
    with suppress(ValueError, RecursionError):
        fields = json.loads(body)
        found = fields.get("request_id") if isinstance(fields, dict) else None
        if isinstance(found, str) and IDENTITY.fullmatch(found):
            request.state.request_id = found


def _given(scope: Scope) -> str | None:
    """The header's, if it is one that a response and a log can repeat."""
    for name, value in scope["headers"]:
        if name.lower() == HEADER.encode():
            found = value.decode("latin-1")
            return found if IDENTITY.fullmatch(found) else None
    return None
