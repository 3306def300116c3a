"""An answer as items that grow: OpenAI's events of `/v1/responses`, or the response as a whole."""

from __future__ import annotations

import time
from collections.abc import Iterator

from glm_trt.engines.serve.answer_parser import (
    BadCall,
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Piece,
    Reasoning,
)
from glm_trt.engines.serve.answers import Answers, Event
from glm_trt.engines.serve.chat import new_call_id
from glm_trt.engines.serve.logprobs import Logprobs
from glm_trt.engines.serve.metrics import ABORT
from glm_trt.engines.serve.protocol.chat import TokenLogprob
from glm_trt.engines.serve.protocol.common import KEEP_ALIVE, ApiError, Json
from glm_trt.engines.serve.protocol.responses import (
    IncompleteDetails,
    InputDetails,
    ModelResponse,
    NamedFunctionTool,
    OutputCall,
    OutputDetails,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningOptions,
    ReasoningText,
    ResponseError,
    ResponsesBody,
    ResponseUsage,
    Status,
)
from glm_trt.engines.serve.responses import wants_logprobs
from glm_trt.engines.serve.settings import Served


class ResponsesWriter:
    """The events of an answer as items that grow: as OpenAI's events, or as one answer.

    Parameters
    ----------
    identity : of the request; IDs of the answer and its items are made of it.
    """

    ends_with_done, keep_alive = False, KEEP_ALIVE

    def __init__(self, body: ResponsesBody, served: Served, identity: str) -> None:
        self._identity, self._served = identity, served
        self._logprobs = Logprobs(served) if wants_logprobs(body) else None
        self._response = _begun(body, served, f"resp_{identity}")
        self._number = 0  # of the next event
        self._open: OutputItem | None = None
        self._texts: list[str] = []  # of the open item
        self._new_logprobs: list[TokenLogprob] = []  # whose text has yet to come
        self._reason: str | None = None

    def opening(self, answers: Answers) -> list[Json]:
        """Events before the first token."""
        return [self._of_response("created"), self._of_response("in_progress")]

    def chunks(self, event: Event) -> list[Json]:
        """What an event adds, nothing if that is nothing."""
        token = event.token
        if self._logprobs is not None and token is not None and event.is_content:
            is_text = bool(self._served.text.decode([token.token_id]))  # the end is none
            self._new_logprobs += [self._logprobs.of(token)] if is_text else []
        found = [x for piece in event.pieces for x in self._piece(piece)]
        if event.finish_reason is not None:
            self._reason = event.finish_reason
            is_whole = self._reason in ("stop", "tool_calls")
            found += self._close("completed" if is_whole else "incomplete")
        return found

    def closing(self, answers: Answers) -> list[Json]:
        """The last event, with all that came."""
        return [self._of_response(self._ended(answers).status)]

    def failing(self, answers: Answers, error: ApiError) -> list[Json]:
        """Events of what went wrong, the last ones."""
        detail = error.detail
        found = [*self._close("incomplete")]
        found.append(
            self._event("error", code=detail.code or detail.type, message=detail.message,
                        param=detail.param)
        )  # fmt: skip
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        return [*found, self._of_response(self._failed(answers, code, detail.message).status)]

    async def whole(self, answers: Answers) -> ModelResponse:
        """Everything at once; raises what ended it."""
        async for event in answers:
            if event.error is not None:
                raise event.error
            self.chunks(event)
        return self._ended(answers)

    def _ended(self, answers: Answers) -> ModelResponse:
        response = self._response
        if self._reason == ABORT:
            return self._failed(answers, "server_error", "the server ended before the answer did")
        response.usage = _usage(answers)
        if self._reason == "length":
            response.status = "incomplete"
            response.incomplete_details = IncompleteDetails()
        else:
            response.status, response.completed_at = "completed", int(time.time())
        return response

    def _failed(self, answers: Answers, code: str, message: str) -> ModelResponse:
        response = self._response
        response.status, response.usage = "failed", _usage(answers)
        response.error = ResponseError.model_validate({"code": code, "message": message})
        return response

    def _of_response(self, status: str) -> Json:
        return self._event(f"response.{status}", response=self._response.model_dump())

    def _event(self, type: str, **fields: object) -> Json:
        self._number += 1
        return {"type": type, "sequence_number": self._number - 1, **fields}

    def _of_item(self, type: str, **fields: object) -> Json:
        """An event of the open item; of its only part, if it has one."""
        assert self._open is not None
        place = {"item_id": self._open.id, "output_index": len(self._response.output) - 1}
        if not isinstance(self._open, OutputCall):
            place["content_index"] = 0
        return self._event(f"response.{type}", **place, **fields)

    def _item(self, name: str) -> Json:
        assert self._open is not None
        index = len(self._response.output) - 1
        return self._event(
            f"response.output_item.{name}", output_index=index, item=self._open.model_dump()
        )

    def _piece(self, piece: Piece) -> Iterator[Json]:
        if isinstance(piece, Reasoning):
            if not isinstance(self._open, OutputReasoning):
                yield from self._begin(OutputReasoning(id=self._new_id("rs")))
            self._texts.append(piece.text)
            yield self._of_item("reasoning_text.delta", delta=piece.text)
        elif isinstance(piece, Content | BadCall):  # so that nothing of an answer is lost
            if not isinstance(self._open, OutputMessage):
                yield from self._begin(OutputMessage(id=self._new_id("msg")))
            self._texts.append(piece.text)
            logprobs = [x.model_dump() for x in self._taken_logprobs()]
            yield self._of_item("output_text.delta", delta=piece.text, logprobs=logprobs)
        elif isinstance(piece, CallBegin):
            call_id = new_call_id()
            yield from self._begin(
                OutputCall(id=self._new_id("fc"), call_id=call_id, name=piece.name)
            )
        elif isinstance(piece, CallArguments):
            self._texts.append(piece.text)
            yield self._of_item("function_call_arguments.delta", delta=piece.text)
        elif isinstance(piece, CallEnd):
            yield from self._close("completed" if piece.fault is None else "incomplete")

    def _new_id(self, kind: str) -> str:
        # A new item follows those that are there.
        return f"{kind}_{self._identity}_{len(self._response.output)}"

    def _taken_logprobs(self) -> list[TokenLogprob]:
        """Those that wait, now with the text of the open message."""
        assert isinstance(self._open, OutputMessage)
        new, self._new_logprobs = self._new_logprobs, []
        self._open.content[0].logprobs.extend(new)
        return new

    def _begin(self, item: OutputItem) -> Iterator[Json]:
        yield from self._close("completed")
        self._response.output.append(item)
        self._open = item
        yield self._item("added")
        if isinstance(item, OutputMessage):
            item.content = [OutputText()]
        else:
            self._new_logprobs = []  # of white space in front of it, which is left out
        if isinstance(item, OutputReasoning):
            item.content = [ReasoningText()]
        if not isinstance(item, OutputCall):
            yield self._of_item("content_part.added", part=item.content[0].model_dump())

    def _close(self, status: Status) -> Iterator[Json]:
        """The end of the open item, if there is one."""
        item, text = self._open, "".join(self._texts)
        if item is None:
            return
        item.status = status
        if isinstance(item, OutputCall):
            item.arguments = text
            yield self._of_item("function_call_arguments.done", name=item.name, arguments=text)
        elif isinstance(item, OutputReasoning):
            item.content[0].text = text
            yield self._of_item("reasoning_text.done", text=text)
            yield self._of_item("content_part.done", part=item.content[0].model_dump())
        else:
            self._taken_logprobs()  # of white space that is no text
            part = item.content[0]
            part.text = text
            logprobs = [x.model_dump() for x in part.logprobs]
            yield self._of_item("output_text.done", text=text, logprobs=logprobs)
            yield self._of_item("content_part.done", part=part.model_dump())
        yield self._item("done")
        self._open, self._texts = None, []


def _begun(body: ResponsesBody, served: Served, identity: str) -> ModelResponse:
    """A response without output."""
    text, choice, defaults = body.text, body.tool_choice, served.defaults
    form = {"type": "text"} if text is None or text.format is None else (
        text.format.model_dump(by_alias=True)
    )  # fmt: skip
    return ModelResponse(
        id=identity,
        created_at=int(time.time()),
        model=served.name,
        output=[],
        instructions=body.instructions,
        tools=[tool.model_dump() for tool in body.tools or []],
        tool_choice=choice.model_dump() if isinstance(choice, NamedFunctionTool)
        else choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        text={"format": form, "verbosity": "medium"},
        reasoning=(body.reasoning or ReasoningOptions()).model_dump(),
        max_output_tokens=body.max_output_tokens,
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_logprobs=body.top_logprobs or 0,
        metadata=body.metadata or {},
        user=body.user,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
    )  # fmt: skip


def _usage(answers: Answers) -> ResponseUsage:
    usage = answers.usage()
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=answers.reasoning_tokens),
        total_tokens=usage.total_tokens,
    )
