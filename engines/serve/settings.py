"""A served model, and what a request's fields mean for it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from glm_trt.engines.python.request import GenerateOptions, SharedPrompt
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.python.text import Text
from glm_trt.engines.serve.engine_loop import EngineLoop
from glm_trt.engines.serve.grammar import Grammars
from glm_trt.engines.serve.limits import Limits
from glm_trt.engines.serve.metrics import Metrics
from glm_trt.engines.serve.protocol.common import ApiError, SamplingBody
from glm_trt.model.errors import GlmTrtError


@dataclass(frozen=True)
class Served:
    """The one model of a server.

    Parameters
    ----------
    name : by which requests ask for it.
    defaults : how tokens are drawn where a request does not say.
    """

    name: str
    runtime: Runtime
    text: Text
    engine: EngineLoop
    grammars: Grammars
    metrics: Metrics
    limits: Limits
    defaults: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def most_tokens(self) -> int:
        """Of a prompt and its answer."""
        return self.runtime.bundle.max_seq_len

    def check_model(self, name: str | None) -> None:
        """That it is this one."""
        if name is not None and name != self.name:
            raise ApiError(
                f"the model {name!r} does not exist; this server has {self.name!r}", "model",
                status=404, code="model_not_found",
            )  # fmt: skip

    def room(self, prompt: Sequence[int], wanted: int | None, name: str) -> int:
        """How many tokens may come, `wanted` ones if that fits.

        Raises
        ------
        ApiError
            If prompt and answer are more than the model takes.
        """
        most, length = self.most_tokens, len(prompt)
        if length == 0:
            raise ApiError("expected at least one token, found none", "prompt")
        if length > most or (wanted or 0) > most - length + 1:
            asked = "" if wanted is None else f" and {name} of {wanted}"
            raise ApiError(
                f"the prompt of {length} tokens{asked} does not fit: prompt and answer may have "
                f"{most} tokens together", name if length <= most else "messages",
                code="context_length_exceeded",
            )  # fmt: skip
        return most - length + 1 if wanted is None else wanted


def sampling_of(body: SamplingBody, defaults: Sampling, greedy: bool = False) -> Sampling:
    """How tokens are drawn; without a seed, differently each time."""

    def chosen(name: str) -> float:
        value = getattr(body, name)
        return float(getattr(defaults, name) if value is None else value)

    seed = secrets.randbits(64) if body.seed is None else body.seed % (1 << 64)
    return Sampling(
        temperature=0.0 if greedy else chosen("temperature"),
        top_k=max(int(chosen("top_k")), 0),  # -1 is all, as for others
        top_p=chosen("top_p"),
        min_p=chosen("min_p"),
        repetition_penalty=chosen("repetition_penalty"),
        seed=seed,
        presence_penalty=chosen("presence_penalty"),
        frequency_penalty=chosen("frequency_penalty"),
    )


def stops_of(body: SamplingBody, limits: Limits) -> tuple[str, ...]:
    """The stop strings."""
    stops = [body.stop] if isinstance(body.stop, str) else (body.stop or [])
    if len(stops) > limits.stops:
        raise ApiError(f"expected {limits.stops} strings at most, found {len(stops)}", "stop")
    for i, stop in enumerate(stops):
        if not 1 <= len(stop) <= limits.stop_characters:
            raise ApiError(
                f"expected 1 to {limits.stop_characters} characters, found {len(stop)}", f"stop.{i}"
            )
    return tuple(stops)


def bias_of(body: SamplingBody, limits: Limits, vocabulary: int) -> dict[int, float]:
    """`logit_bias` by ID; −100 forbids a token, as OpenAI has it."""
    given = body.logit_bias or {}
    if len(given) > limits.biases:
        raise ApiError(
            f"expected {limits.biases} tokens at most, found {len(given)}", "logit_bias"
        )  # fmt: skip
    found = {}
    for name, value in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocabulary):
            raise ApiError(f"expected token IDs below {vocabulary}, found {name!r}", "logit_bias")
        found[int(name)] = float("-inf") if value == -100 else value
    return found


def options_of(
    body: SamplingBody,
    served: Served,
    most_new: int,
    *,
    greedy: bool = False,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
) -> list[GenerateOptions]:
    """What each of the `n` choices of one prompt wants: they differ in their seeds.

    Raises
    ------
    ApiError
        If a field is out of range, or contradicts another.
    """
    limits = served.limits
    if body.n > limits.choices:
        raise ApiError(f"expected {limits.choices} at most, found {body.n}", "n")
    if (body.min_tokens or 0) > most_new:
        raise ApiError(
            f"expected at most the {most_new} that may come, found {body.min_tokens}", "min_tokens"
        )
    if body.stream_options is not None and not body.stream:
        raise ApiError("goes with stream: true only", "stream_options")
    for name, count in (("top_logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)):
        if count is not None and count > limits.logprobs:
            raise ApiError(f"expected {limits.logprobs} at most, found {count}", name)
    bias = bias_of(body, limits, served.runtime.bundle.config.vocab_size)
    sampling = sampling_of(body, served.defaults, greedy)
    found = []
    shared = SharedPrompt(body.n) if body.n > 1 and prompt_logprobs is None else None
    for number in range(body.n):
        seed = (sampling.seed + number) % (1 << 64)
        try:
            found.append(
                GenerateOptions(
                    most_new,
                    replace(sampling, seed=seed),
                    eos_token_ids=() if body.ignore_eos else None,
                    logprobs=logprobs,
                    min_new_tokens=body.min_tokens or 0,
                    logit_bias=bias,
                    prompt_logprobs=prompt_logprobs,
                    shared=shared,
                )
            )
        except GlmTrtError as error:
            name, _, rest = str(error).partition(": ")
            raise ApiError(rest or name, name if rest else None) from None
    return found
