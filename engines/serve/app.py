"""The HTTP application: routes, and server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.exceptions import HTTPException

import glm_trt
from glm_trt.engines.serve.answers import Answers, Event
from glm_trt.engines.serve.chat import ChatWriter, prepare_chat, render
from glm_trt.engines.serve.completions import CompletionWriter, prepare_completion
from glm_trt.engines.serve.errors import ERRORS, MESSAGE_ERRORS, add_handlers, as_api_error
from glm_trt.engines.serve.guard import Guard
from glm_trt.engines.serve.message_writer import MessagesWriter
from glm_trt.engines.serve.messages import count_tokens, prepare_message
from glm_trt.engines.serve.metrics import CONTENT_TYPE
from glm_trt.engines.serve.protocol.chat import ChatBody, ChatCompletion
from glm_trt.engines.serve.protocol.common import Answer, ApiError, Json
from glm_trt.engines.serve.protocol.completions import (
    Completion,
    CompletionBody,
    DetokenizeBody,
    Health,
    Model,
    Models,
    Text,
    TokenizeBody,
    Tokens,
    Version,
)
from glm_trt.engines.serve.protocol.messages import (
    MessagesBody,
    ModelMessage,
    PromptBody,
    TokenCount,
)
from glm_trt.engines.serve.protocol.responses import ModelResponse, ResponsesBody
from glm_trt.engines.serve.request_log import RequestLog, take_request_id
from glm_trt.engines.serve.response_writer import ResponsesWriter
from glm_trt.engines.serve.responses import prepare_response
from glm_trt.engines.serve.settings import Served
from glm_trt.engines.serve.tracing import Tracing

KEEP_ALIVE_SECONDS = 15.0
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens")
PAGE = Path(__file__).parent / "page"
PAGE_TYPES = {
    ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"
}  # fmt: skip
# The page loads its own files and asks this server, nothing else; and no text becomes markup.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "The answer, or its events."}
}


class Writer(Protocol):
    """What makes an answer of events.

    Attributes
    ----------
    ends_with_done : a stream ends with `[DONE]`.
    keep_alive : what a stream has while nothing comes.
    """

    @property
    def ends_with_done(self) -> bool:
        """As above."""
        ...

    @property
    def keep_alive(self) -> str:
        """As above."""
        ...

    def opening(self, answers: Answers) -> list[Json]:
        """Chunks before the first token."""
        ...

    def chunks(self, event: Event) -> list[Json]:
        """What an event adds."""
        ...

    def closing(self, answers: Answers) -> list[Json]:
        """Chunks behind the last token."""
        ...

    def failing(self, answers: Answers, error: ApiError) -> list[Json]:
        """The last chunks, if something went wrong."""
        ...

    async def whole(self, answers: Answers) -> Answer:
        """Everything at once."""
        ...


def make_app(
    served: Served,
    keys: tuple[str, ...] = (),
    log_prompts: bool = False,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application of one model.

    Parameters
    ----------
    keys : one of them is to be given as a bearer token; none is needed if there are none.
    log_prompts : write prompts and answers in the log.
    tracing : where traces of requests go.
    """
    app = FastAPI(
        title="glm-trt",
        version=glm_trt.__version__,
        description=f"{served.name}, compiled by glm-trt, in OpenAI's terms and in Anthropic's.",
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.openapi = lambda: _document(app, served)  # type: ignore[method-assign]
    routers = _model_routes(served), _server_routes(served)
    for router in routers:
        app.include_router(router)
    paths = {str(getattr(route, "path", "")) for router in routers for route in router.routes}
    add_handlers(app)
    app.add_middleware(Guard, keys=keys, body_bytes=served.limits.body_bytes)
    log_text = served.text if log_prompts else None
    app.add_middleware(  # the outermost
        RequestLog, metrics=served.metrics, paths=paths, text=log_text, tracing=tracing
    )
    return app


def _document(app: FastAPI, served: Served) -> Json:
    """The OpenAPI document, with what only the served model tells: its name, how long it reads."""
    if app.openapi_schema is None:
        found = FastAPI.openapi(app)
        for schema in found["components"]["schemas"].values():
            fields = schema.get("properties", {})
            for name in LENGTHS:
                field = fields.get(name, {})
                for option in field.get("anyOf", [field]):
                    if option.get("type") == "integer":
                        option["maximum"] = served.most_tokens
        for name in ("ChatBody", "CompletionBody", "ResponsesBody", "MessagesBody", "PromptBody"):
            found["components"]["schemas"][name]["properties"]["model"]["enum"] = [served.name]
        app.openapi_schema = found
    return app.openapi_schema


def _model_routes(served: Served) -> APIRouter:
    checks = [Depends(take_request_id), Depends(check_unicode)]
    routes = APIRouter(responses=ERRORS, dependencies=checks)

    @routes.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        prepared = await asyncio.to_thread(prepare_chat, body, served)
        prompts = [prepared.prompt] * body.n
        answers = Answers(
            served.engine, served.metrics, prompts, prepared.options, prepared.parsers,
            request.state.arrived,
        )  # fmt: skip
        identity = f"chatcmpl-{request.state.request_id}"
        writer = ChatWriter(body, served, identity)
        return await _answered(request, answers, writer, body.stream)

    @routes.post("/v1/responses", response_model=ModelResponse, responses=STREAM)
    async def responses(body: ResponsesBody, request: Request) -> Response:
        """Answer items of a conversation, with items."""
        prepared = await asyncio.to_thread(prepare_response, body, served)
        answers = Answers(
            served.engine, served.metrics, [prepared.prompt], prepared.options, prepared.parsers,
            request.state.arrived,
        )  # fmt: skip
        writer = ResponsesWriter(body, served, request.state.request_id)
        return await _answered(request, answers, writer, body.stream)

    @routes.post(
        "/v1/messages", response_model=ModelMessage, responses={**STREAM, **MESSAGE_ERRORS}
    )
    async def messages(body: MessagesBody, request: Request) -> Response:
        """Answer a conversation, as Anthropic's API has it."""
        prepared = await asyncio.to_thread(prepare_message, body, served)
        answers = Answers(
            served.engine, served.metrics, [prepared.prompt], prepared.options, prepared.parsers,
            request.state.arrived,
        )  # fmt: skip
        writer = MessagesWriter(served.name, request.state.request_id)
        return await _answered(request, answers, writer, body.stream)

    @routes.post("/v1/messages/count_tokens", responses=MESSAGE_ERRORS)
    async def count(body: PromptBody) -> TokenCount:
        """How many tokens such a conversation has."""
        return TokenCount(input_tokens=await asyncio.to_thread(count_tokens, body, served))

    @routes.post("/v1/completions", response_model=Completion, responses=STREAM)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue texts."""
        prepared = await asyncio.to_thread(prepare_completion, body, served)
        answers = Answers(
            served.engine, served.metrics, prepared.prompts, prepared.options, prepared.parsers,
            request.state.arrived,
        )  # fmt: skip
        identity = f"cmpl-{request.state.request_id}"
        writer = CompletionWriter(body, served, identity, prepared.different)
        return await _answered(request, answers, writer, body.stream)

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Tokens:
        """The IDs of a text, or of a conversation up to where the answer begins."""
        served.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError("expected one of prompt and messages", "prompt")
        if body.prompt is not None:
            ids = await asyncio.to_thread(served.text.encode, body.prompt, body.add_special_tokens)
        else:
            tools = [tool.model_dump(exclude_unset=True) for tool in body.tools or []]
            thinking = body.thinking is None or body.thinking.type == "enabled"
            ids = await asyncio.to_thread(render, body, served, tools, thinking)
        return Tokens(tokens=ids, count=len(ids), max_model_len=served.most_tokens)

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Text:
        """The text of IDs, special tokens by their names."""
        served.check_model(body.model)
        vocabulary = served.runtime.bundle.config.vocab_size
        if body.tokens and max(body.tokens) >= vocabulary:
            raise ApiError(f"expected IDs below {vocabulary}, found {max(body.tokens)}", "tokens")
        raw = b"".join(served.text.token_bytes(token) for token in body.tokens)
        return Text(prompt=raw.decode(errors="replace"))

    @routes.get("/v1/models")
    async def models() -> Models:
        """The model that is served."""
        return Models(data=[_model(served)])

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        """That model, if it is served."""
        served.check_model(name)
        return _model(served)

    return routes


def _server_routes(served: Served) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> Health:
        """Whether the process answers."""
        return Health(status="ok")

    @routes.get("/ready", response_model=Health, responses={503: {"model": Health}})
    async def ready() -> Response:
        """Whether requests are taken on."""
        status = served.engine.status
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Of the engine and of requests, for Prometheus."""
        text = await asyncio.to_thread(served.metrics.text)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    @routes.get("/version")
    async def version() -> Version:
        """Of this package."""
        return Version(version=glm_trt.__version__)

    @routes.get("/", include_in_schema=False)
    async def page() -> Response:
        return _page_file("index.html")

    @routes.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        return _page_file(name)

    return routes


def _page_file(name: str) -> Response:
    files = {path.name: path for path in PAGE.iterdir() if path.suffix in PAGE_TYPES}
    if name not in files:
        raise HTTPException(404)
    path = files[name]
    return FileResponse(path, headers=PAGE_HEADERS, media_type=PAGE_TYPES[path.suffix])


async def check_unicode(request: Request) -> None:
    """That no text of the body has half of a surrogate pair: JSON can spell it, and no text is it.

    Raises
    ------
    ApiError
        If one has.
    """
    body = await request.body()
    if b"\\ud" not in body.lower():
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        place = error.object[max(error.start - 20, 0) : error.start]
        raise ApiError(
            f"expected Unicode, found half of a surrogate pair behind {place!r}"
        ) from None


def _model(served: Served) -> Model:
    return Model(id=served.name, created=served.created, max_model_len=served.most_tokens)


async def _answered(request: Request, answers: Answers, writer: Writer, stream: bool) -> Response:
    """The answer: as a whole, or as events if it was not refused before the first one."""
    request.state.answers = answers  # for the log
    if not stream:
        return await _while_connected(request, answers, writer.whole(answers))
    first = await _or_cancel(answers, answers.next(KEEP_ALIVE_SECONDS))
    if first is not None and first.error is not None:
        answers.cancel()
        raise first.error
    return StreamingResponse(
        _events(answers, writer, first), media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )  # fmt: skip


async def _or_cancel(answers: Answers, work: Awaitable[Any]) -> Any:
    try:
        return await work
    except BaseException:
        answers.cancel()
        raise


async def _while_connected(request: Request, answers: Answers, work: Awaitable[Answer]) -> Response:
    """The whole answer; if the client goes, nothing is run for it any more."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        answers.cancel()

    watcher = asyncio.create_task(gone())
    try:
        whole = await _or_cancel(answers, work)
    finally:
        watcher.cancel()
    return Response(whole.model_dump_json(), media_type="application/json")


async def _events(answers: Answers, writer: Writer, first: Event | None) -> AsyncIterator[str]:
    try:
        for chunk in writer.opening(answers):
            yield _event(chunk)
        event = first
        while True:
            if event is None:
                yield writer.keep_alive
            elif event.error is not None:
                for chunk in writer.failing(answers, as_api_error(event.error)):
                    yield _event(chunk)
                return
            else:
                for chunk in writer.chunks(event):
                    yield _event(chunk)
            if answers.ended:
                break
            event = await answers.next(KEEP_ALIVE_SECONDS)
        for chunk in writer.closing(answers):
            yield _event(chunk)
        if writer.ends_with_done:
            yield "data: [DONE]\n\n"
    finally:
        answers.cancel()  # the client has gone, or all is said


def _event(content: Json) -> str:
    """With a name, if it has a type."""
    name = f"event: {content['type']}\n" if "type" in content else ""
    return f"{name}data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
