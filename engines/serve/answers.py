"""The answers of one request while they come: tokens in the engine's thread, pieces of text in the
event loop's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from glm_trt.engines.python.request import LENGTH, GenerateOptions, Request, Token
from glm_trt.engines.python.stopping import StopStrings
from glm_trt.engines.python.text import Text
from glm_trt.engines.serve.answer_parser import CallBegin, Content, Piece
from glm_trt.engines.serve.engine_loop import Ended, EngineLoop, Job, Refused
from glm_trt.engines.serve.mailbox import Mailbox
from glm_trt.engines.serve.metrics import ABORT, ERROR, STOP, Metrics
from glm_trt.engines.serve.protocol.common import CachedTokens, CompletionTokens, Json, Usage
from glm_trt.engines.serve.timeline import Timeline


class Parser(Protocol):
    """What makes pieces of tokens."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        ...

    @property
    def stop(self) -> str | None:
        """Which one."""
        ...

    @property
    def reasons(self) -> bool:
        """Whether the next token is one of reasoning, if it is no mark."""
        ...

    def is_content(self, token_id: int) -> bool:
        """Whether the next token, if it is this one, is one of content."""
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

    @property
    def stop(self) -> str | None:
        """As in `Parser`."""
        return self._stops.stop

    def is_content(self, token_id: int) -> bool:
        """As in `Parser`."""
        return not self.stopped

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
    is_content : the token is one of content, though its text may come later, or not at all.
    stop : the stop string that ended it, at the end.
    """

    number: int
    token: Token | None
    pieces: list[Piece]
    finish_reason: str | None = None
    error: BaseException | None = None
    is_content: bool = False
    stop: str | None = None


@dataclass
class _Choice:
    """One sequence, and the listener of its job."""

    number: int
    parser: Parser
    mailbox: Mailbox[Event]
    engine: EngineLoop
    metrics: Metrics
    timeline: Timeline
    job: Job | None = None
    has_calls: bool = False
    tokens: int = 0
    reasoning_tokens: int = 0
    reason: str | None = None
    _passes: int = -1  # that the engine had run when the latest token came

    def __call__(self, event: Token | Ended) -> None:
        """In the engine's thread: text is made here, so that a stop string stops at once."""
        now = time.monotonic()
        if isinstance(event, Token):
            self._measure(now)
            self.tokens += 1
            self.reasoning_tokens += self.parser.reasons
            is_content = self.parser.is_content(event.token_id)
            pieces = [] if self.parser.stopped else self.parser.feed(event.token_id)
            self.has_calls |= any(isinstance(piece, CallBegin) for piece in pieces)
            if self.parser.stopped and self.job is not None:
                self.job.cancel()
            self.mailbox.put(Event(self.number, event, pieces, is_content=is_content))
            return
        pieces = [] if event.error is not None or self.parser.stopped else self.parser.end()
        self.has_calls |= any(isinstance(piece, CallBegin) for piece in pieces)
        if isinstance(event.error, Refused):
            self.reason = ABORT
        else:
            self.reason = self._reason(event.request) if event.error is None else ERROR
        self._measure_end(event.job)
        stop = self.parser.stop
        self.mailbox.put(Event(self.number, None, pieces, self.reason, event.error, stop=stop))

    def _measure(self, now: float) -> None:
        """A token has come: the first, the first of a pass, or one behind it."""
        timeline, passes = self.timeline, self.engine.session.statistics.passes
        if timeline.latest is None:
            timeline.first = now
            self.metrics.first_token(timeline)
        elif passes != self._passes:  # accepted drafts come with the token before them
            self.metrics.next_tokens(now - timeline.latest)
            self._passes = passes
        timeline.latest = now
        if timeline.admitted is None and self.job is not None:
            self._prompt_was_run(self.job)

    def _prompt_was_run(self, job: Job) -> None:
        assert job.request is not None, "tokens are of one"
        self.timeline.admitted = job.request.admitted
        self.metrics.prompt(job.request)

    def _measure_end(self, job: Job) -> None:
        timeline, request, reason = self.timeline, job.request, self.reason or ABORT
        if timeline.admitted is None and request is not None:
            # All its tokens came before it had a job, or nothing but the prompt was wanted.
            if timeline.first is not None or request.finish_reason == LENGTH:
                self._prompt_was_run(job)
            timeline.admitted = request.admitted
        timeline.ended = job.ended
        self.metrics.ended(timeline, len(job.prompt), self.tokens,
                           STOP if reason == "tool_calls" else reason)  # fmt: skip

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
    arrived : when the request came, in seconds of `time.monotonic`; None: at this moment.

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
        arrived: float | None = None,
    ) -> None:
        self._mailbox: Mailbox[Event] = Mailbox()
        now = time.monotonic()
        self._choices = [
            _Choice(i, parser, self._mailbox, engine, metrics,
                    Timeline(now if arrived is None else arrived, now))
            for i, parser in enumerate(parsers)
        ]  # fmt: skip
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

    @property
    def timelines(self) -> list[Timeline]:
        """Of each choice."""
        return [choice.timeline for choice in self._choices]

    def described(self) -> Json:
        """For a log: tokens, and seconds; of several choices the longest, but the first token."""
        # Of each prompt the first choice, as the others have all of it from that.
        different = {id(job.prompt): job for job in reversed(self.jobs)}.values()
        reused = [job.request.reused for job in different if job.request is not None]
        lines = self.timelines
        return {
            "prompt_tokens": sum(len(job.prompt) for job in different),
            "cached_tokens": sum(reused),
            "completion_tokens": sum(choice.tokens for choice in self._choices),
            "reasoning_tokens": self.reasoning_tokens,
            # Of one that the engine has yet to end, nobody waits for what comes.
            "finish_reasons": [choice.reason or ABORT for choice in self._choices],
            "queue_s": max((x.queue for x in lines if x.queue is not None), default=None),
            "prefill_s": max((x.prefill for x in lines if x.prefill is not None), default=None),
            "first_token_s": min(
                (x.to_first_token for x in lines if x.to_first_token is not None), default=None
            ),
            "decode_s": max((x.decode for x in lines if x.decode is not None), default=None),
        }
