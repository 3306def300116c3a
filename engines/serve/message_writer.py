"""An answer as blocks that grow: Anthropic's events of `/v1/messages`, or the whole message."""

from __future__ import annotations

import hashlib
import json
import uuid
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
from glm_trt.engines.serve.errors import MESSAGES, error_body
from glm_trt.engines.serve.metrics import ABORT
from glm_trt.engines.serve.protocol.common import ApiError, Json
from glm_trt.engines.serve.protocol.messages import (
    Block,
    MessageUsage,
    ModelMessage,
    SaidText,
    StopReason,
    ThinkingTokens,
    Thought,
    ToolUse,
)

REASONS: dict[str, StopReason] = {
    "stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"
}  # fmt: skip
NOTHING = MessageUsage(
    input_tokens=0, cache_read_input_tokens=0, output_tokens=0,
    output_tokens_details=ThinkingTokens(thinking_tokens=0),
)  # fmt: skip


class MessagesWriter:
    """The events of an answer as blocks that grow: as Anthropic's events, or as one message.

    Parameters
    ----------
    model : its name.
    identity : of the request.
    """

    ends_with_done = False
    keep_alive = 'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, model: str, identity: str) -> None:
        self._identity = identity
        self._message = ModelMessage(id=f"msg_{identity}", model=model, usage=NOTHING)
        self._open: Block | None = None
        self._texts: list[str] = []  # of the open block
        self._is_aborted = False

    def opening(self, answers: Answers) -> list[Json]:
        """The message without blocks."""
        self._message.usage = _usage(answers)
        return [{"type": "message_start", "message": self._message.model_dump()}]

    def chunks(self, event: Event) -> list[Json]:
        """What an event adds, nothing if that is nothing."""
        found = [x for piece in event.pieces for x in self._piece(piece)]
        if event.finish_reason is not None:
            found += self._close()
            self._is_aborted = event.finish_reason == ABORT
            if event.stop is not None:
                self._message.stop_reason, self._message.stop_sequence = "stop_sequence", event.stop
            elif not self._is_aborted:
                self._message.stop_reason = REASONS[event.finish_reason]
        return found

    def closing(self, answers: Answers) -> list[Json]:
        """Why it ended, and all its tokens; an error if the server ended it."""
        if self._is_aborted:
            return self.failing(answers, _aborted())
        usage = _usage(answers).model_dump(exclude={"service_tier"})
        delta = self._message.model_dump(include={"stop_reason", "stop_sequence"})
        return [
            {"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}
        ]  # fmt: skip

    def failing(self, answers: Answers, error: ApiError) -> list[Json]:
        """What went wrong."""
        return [error_body(error, MESSAGES, self._identity)]

    async def whole(self, answers: Answers) -> ModelMessage:
        """Everything at once; raises what ended it."""
        async for event in answers:
            if event.error is not None:
                raise event.error
            self.chunks(event)
        if self._is_aborted:
            raise _aborted()
        self._message.usage = _usage(answers)
        return self._message

    def _of_block(self, type: str, **fields: object) -> Json:
        """An event of the open block."""
        index = len(self._message.content) - 1
        return {"type": f"content_block_{type}", "index": index, **fields}

    def _delta(self, type: str, **fields: str) -> Json:
        return self._of_block("delta", delta={"type": f"{type}_delta", **fields})

    def _piece(self, piece: Piece) -> Iterator[Json]:
        if isinstance(piece, Reasoning):
            if not isinstance(self._open, Thought):
                yield from self._begin(Thought())
            self._texts.append(piece.text)
            yield self._delta("thinking", thinking=piece.text)
        elif isinstance(piece, Content | BadCall):  # so that nothing of an answer is lost
            if not isinstance(self._open, SaidText):
                yield from self._begin(SaidText())
            self._texts.append(piece.text)
            yield self._delta("text", text=piece.text)
        elif isinstance(piece, CallBegin):
            yield from self._begin(ToolUse(id=f"toolu_{uuid.uuid4().hex[:24]}", name=piece.name))
        elif isinstance(piece, CallArguments):
            self._texts.append(piece.text)
            yield self._delta("input_json", partial_json=piece.text)
        elif isinstance(piece, CallEnd):
            yield from self._close()

    def _begin(self, block: Block) -> Iterator[Json]:
        yield from self._close()
        self._message.content.append(block)
        self._open = block
        yield self._of_block("start", content_block=block.model_dump())

    def _close(self) -> Iterator[Json]:
        """The end of the open block, if there is one."""
        block, text = self._open, "".join(self._texts)
        if block is None:
            return
        if isinstance(block, ToolUse):
            block.input = pairs_of(text)
        elif isinstance(block, Thought):
            # Nothing is checked by it: there are clients that drop what has none.
            block.thinking, block.signature = text, hashlib.sha256(text.encode()).hexdigest()
            yield self._delta("signature", signature=block.signature)
        else:
            block.text = text
        yield self._of_block("stop")
        self._open, self._texts = None, []


def pairs_of(arguments: str) -> Json:
    """A call's arguments as an object; of those that were cut, the ones that are whole."""
    found: Json = {}
    decoder, place = json.JSONDecoder(), len("{")
    try:
        while True:
            key, place = decoder.raw_decode(arguments, place)
            found[key], place = decoder.raw_decode(arguments, place + len(": "))
            place += len(", ")
    except ValueError:
        return found


def _aborted() -> ApiError:
    return ApiError("the server ended before the answer did", status=503, type="overloaded_error")


def _usage(answers: Answers) -> MessageUsage:
    usage = answers.usage()
    reused = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(
        input_tokens=usage.prompt_tokens - reused,
        cache_read_input_tokens=reused,
        output_tokens=usage.completion_tokens,
        output_tokens_details=ThinkingTokens(thinking_tokens=answers.reasoning_tokens),
    )
