"""What is refused before a body is read: no key, a wrong one, too many bytes."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/", "/health", "/ready", "/version", "/metrics", "/openapi.json")


class Guard:
    """An ASGI middleware.

    Parameters
    ----------
    keys : of which one is wanted as `Authorization: Bearer …`; empty for none. What tells nothing
        of prompts or answers needs none.
    body_bytes : at most.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], body_bytes: int) -> None:
        self._app, self._most = app, body_bytes
        self._keys = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        path = scope["path"]
        if self._keys and path not in OPEN and not path.startswith("/page/"):
            text = self._wrong_key(headers.get(b"authorization", b""))
            if text is not None:
                await _refuse(send, 401, text, "authentication_error", "invalid_api_key")
                return
        try:
            announced = int(headers.get(b"content-length", b"0"))
        except ValueError:
            announced = 0
        text = f"the body has more than {self._most} bytes"
        if announced > self._most:
            await _refuse(send, 413, text, "invalid_request_error", "body_too_large")
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(413, text)
            return message

        await self._app(scope, counted, send)

    def _wrong_key(self, header: bytes) -> str | None:
        scheme, _, key = header.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not key:
            return "expected an API key: Authorization: Bearer KEY"
        given = _digest(key.strip())
        # All are compared, so that time tells nothing.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        return None if any(matches) else "the API key is not one of this server's"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def _refuse(send: Send, status: int, message: str, kind: str, code: str) -> None:
    error: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
               (b"connection", b"close")]  # fmt: skip
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
