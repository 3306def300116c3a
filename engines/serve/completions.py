"""`/v1/completions`: texts and token IDs continued, without a conversation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from glm_trt.engines.python.request import GenerateOptions, Request
from glm_trt.engines.serve.answer_parser import Content
from glm_trt.engines.serve.answers import Answers, Event, PlainParser
from glm_trt.engines.serve.logprobs import Logprobs as ChatLogprobs
from glm_trt.engines.serve.protocol.common import KEEP_ALIVE, ApiError, Json
from glm_trt.engines.serve.protocol.completions import (
    Completion,
    CompletionBody,
    CompletionChoice,
    Logprobs,
)
from glm_trt.engines.serve.settings import Served, options_of, stops_of

Row = tuple[int, float | None, Sequence[tuple[int, float]]]  # a token, and the most probable ones
DEFAULT_TOKENS = 16  # OpenAI's, of this endpoint


@dataclass(frozen=True)
class PreparedCompletion:
    """What a body asks of the engine: for each prompt `n` choices, one after another."""

    prompts: list[list[int]]
    options: list[GenerateOptions]
    parsers: list[PlainParser]
    different: int  # prompts


def prepare_completion(body: CompletionBody, served: Served) -> PreparedCompletion:
    """Prompts, options and a parser for each choice.

    Raises
    ------
    ApiError
        If fields contradict each other, are out of range, or a prompt does not fit.
    """
    served.check_model(body.model)
    if body.best_of not in (None, body.n):
        raise ApiError(f"expected n ({body.n}), found {body.best_of}", "best_of")
    if body.echo and body.stream:
        raise ApiError("does not go with stream: true", "echo")
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError("does not go with stream: true", "prompt_logprobs")
    of_prompt = body.prompt_logprobs
    if of_prompt is None and body.echo:
        of_prompt = body.logprobs
    stops = stops_of(body, served.limits)
    texts = _prompts(body, served)
    prepared = PreparedCompletion([], [], [], len(texts))
    for ids in texts:
        wanted = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        most_new = served.room(ids, wanted, "max_tokens")
        for options in options_of(
            body, served, most_new, logprobs=body.logprobs, prompt_logprobs=of_prompt
        ):
            prepared.prompts.append(ids)
            prepared.options.append(options)
            prepared.parsers.append(PlainParser(served.text, stops))
    if len(prepared.prompts) > served.limits.choices:
        raise ApiError(
            f"expected {served.limits.choices} sequences at most (prompts × n), found "
            f"{len(prepared.prompts)}", "prompt",
        )  # fmt: skip
    return prepared


def _prompts(body: CompletionBody, served: Served) -> list[list[int]]:
    given = body.prompt
    several: Sequence[str | Sequence[int]]
    if isinstance(given, str):
        several = [given]
    elif given and all(isinstance(x, int) for x in given):
        several = [given]  # type: ignore[list-item]
    else:
        several = given  # type: ignore[assignment]
    if not several:
        raise ApiError("expected at least one prompt, found none", "prompt")
    vocabulary = served.runtime.bundle.config.vocab_size
    found = []
    for prompt in several:
        ids = served.text.encode(prompt) if isinstance(prompt, str) else [*prompt]
        if ids and max(ids) >= vocabulary:
            raise ApiError(f"expected IDs below {vocabulary}, found {max(ids)}", "prompt")
        found.append(ids)
    return found


class CompletionWriter:
    """Events of a completion as chunks, or as one answer."""

    ends_with_done, keep_alive = True, KEEP_ALIVE

    def __init__(self, body: CompletionBody, served: Served, identity: str, different: int) -> None:
        self._body, self._served, self._different = body, served, different
        self._base: Json = {"id": identity, "created": int(time.time()), "model": served.name}
        self._offsets: dict[int, int] = {}

    def opening(self, answers: Answers) -> list[Json]:
        """Nothing comes before the first text."""
        return []

    def chunks(self, event: Event) -> list[Json]:
        """What an event adds, nothing if that is nothing."""
        text = "".join(piece.text for piece in event.pieces if isinstance(piece, Content))
        wants = self._body.logprobs is not None and event.token is not None
        if not text and event.finish_reason is None and not wants:
            return []
        choice: Json = {"index": event.number, "text": text, "logprobs": None,
                        "finish_reason": event.finish_reason}  # fmt: skip
        if wants and event.token is not None:
            token = event.token
            offset = self._offsets.get(event.number, 0)
            rows = [(token.token_id, token.logprob, token.top_logprobs)]
            found = self._logprobs(rows, offset)
            self._offsets[event.number] = offset + len(text)
            choice["logprobs"] = found.model_dump()
        return [self._chunk([choice])]

    def closing(self, answers: Answers) -> list[Json]:
        """Tokens, if they are wanted."""
        options = self._body.stream_options
        if options is None or not options.include_usage:
            return []
        return [self._chunk([]) | {"usage": answers.usage(self._different).model_dump()}]

    def failing(self, answers: Answers, error: ApiError) -> list[Json]:
        """What went wrong."""
        return [error.body()]

    def _chunk(self, choices: list[Json]) -> Json:
        found = {**self._base, "object": "text_completion", "choices": choices}
        options = self._body.stream_options
        if options is not None and options.include_usage:
            found["usage"] = None
        return found

    async def whole(self, answers: Answers) -> Completion:
        """Everything at once; raises what ended a choice."""
        texts = [""] * len(answers.jobs)
        reasons: list[str | None] = [None] * len(texts)
        async for event in answers:
            if event.error is not None:
                raise event.error
            texts[event.number] += "".join(x.text for x in event.pieces if isinstance(x, Content))
            reasons[event.number] = event.finish_reason
        choices = [
            self._choice(i, text, reason, answers.request(i))
            for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return Completion(**self._base, choices=choices, usage=answers.usage(self._different))

    def _choice(
        self, number: int, text: str, reason: str | None, request: Request
    ) -> CompletionChoice:
        rows: list[Row] = [
            *zip(request.tokens, request.logprobs, request.top_logprobs, strict=False)
        ]
        if self._body.echo:
            text = self._served.text.decode(request.prompt) + text
            first: Row = (request.prompt[0], None, ())
            rows = [first, *zip(
                request.prompt[1:], request.prompt_logprobs, request.prompt_top_logprobs,
                strict=False,
            ), *rows]  # fmt: skip
        wanted = self._body.logprobs is not None
        of_prompt = ChatLogprobs(self._served).of_prompt(request)
        return CompletionChoice(
            index=number,
            text=text,
            logprobs=self._logprobs(rows, 0) if wanted else None,
            finish_reason=reason,  # type: ignore[arg-type]
            prompt_logprobs=of_prompt if self._body.prompt_logprobs is not None else None,
        )

    def _logprobs(self, rows: Sequence[Row],
                  offset: int) -> Logprobs:  # fmt: skip
        name = self._served.text.token_text
        offsets = [offset]
        for token, _, _ in rows[:-1]:
            # Where a character is spread over tokens, all of it is counted with the first of them.
            raw = self._served.text.token_bytes(token)
            offsets.append(offsets[-1] + sum(byte & 0xC0 != 0x80 for byte in raw))
        return Logprobs(
            tokens=[name(token) for token, _, _ in rows],
            token_logprobs=[None if x is None else max(x, -9999.0) for _, x, _ in rows],
            top_logprobs=[
                None if x is None else {name(i): max(y, -9999.0) for i, y in top}
                for _, x, top in rows
            ],
            text_offset=offsets,
        )
