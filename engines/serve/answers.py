"""The answers of one request while they come: tokens in the engine's thread, pieces of text in the
event loop's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from glm_trt.engines.python.request import LENGTH, GenerateOptions, Request, Token
from glm_trt.engines.python.stopping import StopStrings
from glm_trt.engines.python.text import Text
from glm_trt.engines.serve.answer_parser import CallBegin, Content, Piece
from glm_trt.engines.serve.engine_loop import Ended, EngineLoop, Job
from glm_trt.engines.serve.mailbox import Mailbox
from glm_trt.engines.serve.metrics import Metrics
from glm_trt.engines.serve.protocol.common import CachedTokens, CompletionTokens, Json, Usage


class Parser(Protocol):
    """What makes pieces of tokens."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        ...

    @property
    def reasons(self) -> bool:
        """Whether the next token is one of reasoning, if it is no mark."""
        ...

    def feed(self, token_id: int) -> list[Piece]:
        """What one more token gives."""
        ...

    def end(self) -> list[Piece]:
        """What was held back, as no more tokens come."""
        ...


class PlainParser:
    """Everything is content, special tokens are nothing: what a completion is."""

    reasons = False

    def __init__(self, text: Text, stop: tuple[str, ...] = ()) -> None:
        self._stream, self._stops = text.stream(), StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """As in `Parser`."""
        return self._stops.found

    def feed(self, token_id: int) -> list[Piece]:
        """As in `Parser`."""
        return self._pieces(self._stops.feed(self._stream.feed(token_id)))

    def end(self) -> list[Piece]:
        """As in `Parser`."""
        return self._pieces(self._stops.feed(self._stream.rest()) + self._stops.rest())

    @staticmethod
    def _pieces(text: str) -> list[Piece]:
        return [Content(text)] if text else []


@dataclass(frozen=True)
class Event:
    """What one token of a choice, or its end, gave.

    Attributes
    ----------
    number : of the choice.
    token : None at the end.
    finish_reason : of OpenAI's, at the end.
    error : what ended it instead.
    """

    number: int
    token: Token | None
    pieces: list[Piece]
    finish_reason: str | None = None
    error: BaseException | None = None


@dataclass
class _Choice:
    """One sequence, and the listener of its job."""

    number: int
    parser: Parser
    mailbox: Mailbox[Event]
    metrics: Metrics
    job: Job | None = None
    has_calls: bool = False
    tokens: int = 0
    reasoning_tokens: int = 0
    began: float = field(default_factory=time.monotonic)
    first: float | None = None  # seconds from then to the first token
    latest: float = 0.0
    reason: str | None = None

    def __call__(self, event: Token | Ended) -> None:
        """In the engine's thread: text is made here, so that a stop string stops at once."""
        now = time.monotonic()
        if isinstance(event, Token):
            if self.first is None:
                self.first = now - self.began
                self.metrics.first_token(self.first)
            else:
                self.metrics.next_token(now - self.latest)
            self.latest = now
            self.tokens += 1
            self.reasoning_tokens += self.parser.reasons
            pieces = [] if self.parser.stopped else self.parser.feed(event.token_id)
            self.has_calls |= any(isinstance(piece, CallBegin) for piece in pieces)
            if self.parser.stopped and self.job is not None:
                self.job.cancel()
            self.mailbox.put(Event(self.number, event, pieces))
            return
        pieces = [] if event.error is not None or self.parser.stopped else self.parser.end()
        self.has_calls |= any(isinstance(piece, CallBegin) for piece in pieces)
        self.reason = "error" if event.error is not None else self._reason(event.request)
        self.metrics.ended(event.job, self.tokens, self.reason)
        self.mailbox.put(Event(self.number, None, pieces, self.reason, event.error))

    def _reason(self, request: Request | None) -> str:
        if self.parser.stopped:
            return "stop"
        reason = None if request is None else request.finish_reason
        if reason == LENGTH:
            return "length"
        if reason == "stop":
            return "tool_calls" if self.has_calls else "stop"
        return "abort"  # the server ends, or nobody waits for it


class Answers:
    """All choices of one request. Used within the event loop's thread.

    Parameters
    ----------
    prompts, options, parsers : of each choice.

    Raises
    ------
    GlmTrtError
        As `EngineLoop.submit`.
    """

    def __init__(
        self,
        engine: EngineLoop,
        metrics: Metrics,
        prompts: Sequence[Sequence[int]],
        options: Sequence[GenerateOptions],
        parsers: Sequence[Parser],
    ) -> None:
        self._mailbox: Mailbox[Event] = Mailbox()
        self._choices = [
            _Choice(i, parser, self._mailbox, metrics) for i, parser in enumerate(parsers)
        ]
        self.jobs = engine.submit(prompts, options, self._choices)
        for choice, job in zip(self._choices, self.jobs, strict=True):
            choice.job = job
            if choice.parser.stopped:  # its first tokens came before it had a job
                job.cancel()
        self._left = len(self.jobs)

    async def next(self, seconds: float | None = None) -> Event | None:
        """The next event of any choice; None if none came within so many seconds."""
        event = await self._mailbox.get(seconds)
        if event is not None and event.token is None:
            self._left -= 1
        return event

    @property
    def ended(self) -> bool:
        """Whether every choice has."""
        return self._left == 0

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Every event to the end."""
        while not self.ended:
            event = await self.next()
            assert event is not None
            yield event

    def cancel(self) -> None:
        """Nobody waits any more."""
        for job in self.jobs:
            job.cancel()

    def request(self, number: int) -> Request:
        """Of a choice that has a row."""
        request = self.jobs[number].request
        assert request is not None
        return request

    @property
    def reasoning_tokens(self) -> int:
        """Of all choices."""
        return sum(choice.reasoning_tokens for choice in self._choices)

    def usage(self, prompts: int = 1) -> Usage:
        """Tokens so far; of `prompts` different prompts each is counted once."""
        step = len(self.jobs) // prompts
        first = self.jobs[::step]
        prompt = sum(len(job.prompt) for job in first)
        new = sum(choice.tokens for choice in self._choices)
        reused = sum(job.request.reused if job.request else 0 for job in first)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=new,
            total_tokens=prompt + new,
            prompt_tokens_details=CachedTokens(cached_tokens=reused),
            completion_tokens_details=CompletionTokens(reasoning_tokens=self.reasoning_tokens),
        )

    def described(self) -> Json:
        """For a log: tokens, and seconds until there was a row and the first token."""
        usage, first = self.usage(), [x.first for x in self._choices if x.first is not None]
        queued = [x.admitted - x.submitted for x in self.jobs if x.admitted is not None]
        return {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.prompt_tokens_details.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "finish_reasons": [choice.reason for choice in self._choices],
            "queue_s": max(queued, default=None),
            "first_token_s": min(first, default=None),
        }
