"""What is refused before a body is read: no key, a wrong one, too many bytes."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_trt.engines.serve.errors import error_body
from glm_trt.engines.serve.protocol.common import ApiError

OPEN = ("/", "/health", "/ready", "/version", "/metrics", "/openapi.json")


class Guard:
    """An ASGI middleware.

    Parameters
    ----------
    keys : of which one is wanted as `Authorization: Bearer …` or as `x-api-key`; empty for none.
        What tells nothing of prompts or answers needs none.
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
            text = self._wrong_key(headers)
            if text is not None:
                kind, code = "authentication_error", "invalid_api_key"
                await _refuse(scope, send, ApiError(text, status=401, type=kind, code=code))
                return
        try:
            announced = int(headers.get(b"content-length", b"0"))
        except ValueError:
            announced = 0
        text = f"the body has more than {self._most} bytes"
        if announced > self._most:
            await _refuse(scope, send, ApiError(text, status=413, code="body_too_large"))
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

    def _wrong_key(self, headers: Mapping[bytes, bytes]) -> str | None:
        scheme, _, bearer = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        keys = [bearer.strip()] if scheme.lower() == "bearer" else []
        keys.append(headers.get(b"x-api-key", b"").decode("latin-1").strip())
        given = [_digest(key) for key in keys if key]
        if not given:
            return "expected an API key: Authorization: Bearer KEY, or x-api-key: KEY"
        # All are compared, so that time tells nothing.
        matches = [hmac.compare_digest(one, known) for one in given for known in self._keys]
        return None if any(matches) else "the API key is not one of this server's"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def _refuse(scope: Scope, send: Send, error: ApiError) -> None:
    found = error_body(error, scope["path"], scope["state"]["request_id"])
    body = json.dumps(found).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
               (b"connection", b"close")]  # fmt: skip
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
