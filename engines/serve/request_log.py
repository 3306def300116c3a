"""One line of JSON for each request, on the standard error: what it cost, not what it said."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_trt.engines.python.text import Text
from glm_trt.engines.serve.metrics import Metrics

SILENT = ("/health", "/ready", "/metrics")  # asked every few seconds


class RequestLog:
    """An ASGI middleware, that counts responses too. Times are in seconds.

    Parameters
    ----------
    text : to write prompts and answers with, which is for whoever may read them; None not to.
    stream : the standard error, if None.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, text: Text | None = None, stream: TextIO | None = None
    ) -> None:
        self._app, self._metrics, self._text = app, metrics, text
        self._stream = sys.stderr if stream is None else stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, then write its line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # the client left before there was one

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        scope.setdefault("state", {})
        try:
            await self._app(scope, receive, sent)
        finally:
            # The path as it is in the OpenAPI document, so that there are few of them.
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.responded(path, status)
            if path not in SILENT:
                self._write(scope, status, time.monotonic() - began)

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        fields: dict[str, Any] = {
            "event": "request",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "client": (scope.get("client") or [None])[0],
            "total_s": seconds,
        }
        answers = scope["state"].get("answers")
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
        print(json.dumps(present, ensure_ascii=False), file=self._stream, flush=True)
