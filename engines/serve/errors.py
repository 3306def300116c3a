"""What goes wrong, as the client is told: errors of OpenAI's form, or of Anthropic's."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from glm_trt.engines.serve.engine_loop import Refused
from glm_trt.engines.serve.protocol.common import ApiError, ErrorBody, Json
from glm_trt.engines.serve.protocol.messages import MessageError, MessageErrorDetail
from glm_trt.engines.serve.request_log import HEADERS
from glm_trt.model.errors import GlmTrtError

MOST_FAULTS = 16  # of a body, that are looked at
MESSAGES = "/v1/messages"
# Anthropic's kinds by the status; what is not here is a request that is invalid.
KINDS = {
    401: "authentication_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 500: "api_error", 503: "overloaded_error",
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "A field is wrong, unknown or contradicts another.",
        401: "No key, or a wrong one.",
        404: "There is no such model.",
        413: "The body is too large.",
        429: "Too many requests wait.",
        500: "The engine failed.",
        503: "No row became free in time, or the server is shutting down.",
    }.items()
}


MESSAGE_ERRORS = {status: {**said, "model": MessageError} for status, said in ERRORS.items()}


def error_body(error: ApiError, path: str, request_id: str) -> Json:
    """As it is sent, in the form that clients of `path` know."""
    if path != MESSAGES and not path.startswith(f"{MESSAGES}/"):
        return error.body()
    message, param = error.detail.message, error.detail.param
    if param and param not in message:  # which has no field of its own there
        message = f"{param}: {message}"
    kind = KINDS.get(error.status, "invalid_request_error")
    detail = MessageErrorDetail(type=kind, message=message)
    return MessageError(error=detail, request_id=request_id).model_dump()


def add_handlers(app: FastAPI) -> None:
    """Answer what is raised in `app`, each time in the form that clients know."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(GlmTrtError, _engine_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error: of its request all, of the engine no more than that."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused):
        kind = "rate_limit_error" if error.status == 429 else "overloaded_error"
        return ApiError(
            str(error), status=error.status, type=kind, retry_seconds=error.retry_seconds
        )
    if isinstance(error, GlmTrtError):
        return ApiError(str(error), status=500, type="server_error")
    return ApiError("the engine failed", status=500, type="server_error")


def _response(request: Request, error: ApiError) -> Response:
    headers = {}
    if error.retry_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_seconds)))
    body = error_body(error, request.url.path, request.state.request_id)
    return JSONResponse(body, error.status, headers)


async def _api_error(request: Request, error: Any) -> Response:
    return _response(request, error)


async def _engine_error(request: Request, error: Any) -> Response:
    return _response(request, as_api_error(error))


async def _failed(request: Request, error: Any) -> Response:
    """Outside of all that is added to the application, so that the ID is given here."""
    response = _response(request, as_api_error(error))
    for name in HEADERS:
        response.headers[name] = request.state.request_id
    return response


async def _invalid(request: Request, error: Any) -> Response:
    return _response(request, _fault(error))


def _fault(error: Any) -> ApiError:
    """pydantic's first error, with the place in words. Where one of several forms was expected,
    that of the form that fits best.
    """
    faults = error.errors()[:MOST_FAULTS]
    if faults[0]["type"] == "json_invalid":
        reason = faults[0].get("ctx", {}).get("error", "")
        return ApiError(f"the body is not JSON: {reason}".rstrip(": "))
    places = [_place(fault, error.body) for fault in faults]
    first = places[0]
    among = [i for i, place in enumerate(places) if place[: len(first)] == first]
    best = max(among, key=lambda i: len(places[i]))
    found, param = faults[best], ".".join(places[best]) or None
    if found["type"] == "extra_forbidden":
        return ApiError(f"{param}: unknown field", param, code="unknown_parameter")
    if found["type"] == "missing":
        text = f"{param}: expected, and missing" if param else "expected a JSON body"
        return ApiError(text, param)
    return ApiError(f"{param}: {found['msg']}" if param else found["msg"], param)


def _place(fault: Json, body: Any) -> list[str]:
    """Where in the body it is: pydantic's place without the names of the forms it tried."""
    parts = [*fault["loc"][1:]]  # behind "body"
    found: list[str] = []
    for i, part in enumerate(parts):
        inside = isinstance(part, int) and part < len(body) if isinstance(body, list) else (
            isinstance(body, dict) and part in body
        )  # fmt: skip
        if inside:
            body = body[part]
        elif i < len(parts) - 1 or fault["type"] != "missing":
            continue
        found.append(str(part))
    return found


def _unread(cause: BaseException | None) -> str | None:
    """Why a body could not be read as JSON at all."""
    if isinstance(cause, UnicodeDecodeError):
        byte = cause.object[cause.start]
        return f"the body is not JSON: byte 0x{byte:02x} at {cause.start} is no UTF-8"
    return "the body is not JSON: nested too deeply" if isinstance(cause, RecursionError) else None


async def _http_error(request: Request, error: Any) -> Response:
    text = {404: f"there is no {request.url.path}", 405: f"{request.method} is not for this path"}
    codes = {404: "not_found", 413: "body_too_large"}
    found = ApiError(
        text.get(error.status_code, _unread(error.__cause__) or str(error.detail)),
        status=error.status_code,
        code=codes.get(error.status_code),
    )  # fmt: skip
    response = _response(request, found)
    response.headers.update(error.headers or {})
    return response
