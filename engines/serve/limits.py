"""What a server takes on, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one server.

    Parameters
    ----------
    waiting : requests that wait for a row; one more is refused at once (429).
    waiting_seconds : how long one may wait for a row; after that it is refused (503).
    grace_seconds : how long requests under way may go on when the server is to end.
    body_bytes : of a request (413).
    choices : `n` of a request.
    stops, stop_characters : stop strings of a request, and characters of each.
    tools, schema_bytes : tools of a request, and JSON of one schema.
    logprobs : most probable tokens beside each token.
    biases : tokens in `logit_bias`.
    """

    waiting: int = 64
    waiting_seconds: float = 60.0
    grace_seconds: float = 30.0
    body_bytes: int = 16_000_000
    choices: int = 16
    stops: int = 16
    stop_characters: int = 1024
    tools: int = 128
    schema_bytes: int = 1 << 16
    logprobs: int = 20
    biases: int = 1024
