"""Answers as events: what writers make of an answer's pieces, and what a stream holds."""

from __future__ import annotations

import json
from typing import Any

from glm_trt.engines.serve.answer_parser import Piece
from glm_trt.engines.serve.answers import Event
from glm_trt.engines.serve.protocol.common import CachedTokens, CompletionTokens, Usage


class _Answers:
    """Of which only the tokens are asked."""

    reasoning_tokens = 1

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=3, completion_tokens=2, total_tokens=5,
            prompt_tokens_details=CachedTokens(cached_tokens=1),
            completion_tokens_details=CompletionTokens(reasoning_tokens=1),
        )  # fmt: skip


ANSWERS: Any = _Answers()


def events_of(writer: Any, *pieces: Piece, reason: str | None) -> list[dict[str, Any]]:
    """What a writer makes of an answer of these pieces, which has ended if there is a reason."""
    events: list[dict[str, Any]] = writer.opening(ANSWERS)
    for piece in pieces:
        events += writer.chunks(Event(0, None, [piece]))
    if reason is not None:
        events += writer.chunks(Event(0, None, [], reason))
    return events


def named_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream in which each is named by its type."""
    events = []
    for block in text.split("\n\n")[:-1]:
        name, _, data = block.partition("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events
