"""One request of a session: what it wants, what came of it, states for another to go on from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.python.backend import RowState
from glm_trt.engines.python.constraint import Constraint
from glm_trt.engines.python.sampling import NOTHING, Sampling, choose, log_probabilities
from glm_trt.engines.python.stopping import StopStrings
from glm_trt.engines.python.text import TextStream
from glm_trt.model.errors import GlmTrtError

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"
TopTokens = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class GenerateOptions:
    """What a request wants.

    Parameters
    ----------
    max_new_tokens : how many at most.
    sampling : how each is drawn; greedy by default.
    stop : texts at which it ends; they are not part of its text.
    eos_token_ids : tokens at which it ends, the bundle's own if None.
    logprobs : give log-probabilities: of each token, and of so many of the most probable ones. None
        for none at all.
    keep : keep its states as `Request.snapshot` when it has ended, for a request that goes on.
    min_new_tokens : no end token comes before so many others.
    logit_bias : added to the logits of these tokens, before all else; −inf forbids one.
    constraint : what the tokens must be, beyond that; one of its own for each request.
    prompt_logprobs : as `logprobs`, of each token of the prompt but the first. Such a prompt is run
        whole, whatever prefix is given.
    shared : of several requests of one session that have the same prompt: it is run once.
    """

    max_new_tokens: int = 32
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None
    keep: bool = False
    min_new_tokens: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    constraint: Constraint | None = None
    prompt_logprobs: int | None = None
    shared: SharedPrompt | None = None

    def __post_init__(self) -> None:
        """Check what no other class does."""
        for name in ("max_new_tokens", "logprobs", "min_new_tokens", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise GlmTrtError(f"{name}: expected 0 or more, found {value}")
        if any(not value < math.inf for value in self.logit_bias.values()):
            raise GlmTrtError("logit_bias: expected finite numbers or -inf")


@dataclass(frozen=True)
class Token:
    """One token of a request, as `on_token` gets it.

    Attributes
    ----------
    token_id : the token.
    text : what is new of the request's text: not always the token's own, as characters may be
        spread over tokens, and text that may begin a stop string is held back. None without a
        tokenizer.
    logprob : natural logarithm of the model's probability of it; None unless asked for.
    top_logprobs : the most probable tokens with theirs.
    finish_reason : "stop" (an end token or a stop string), "length", "cancelled"; None if it goes
        on.
    """

    token_id: int
    text: str | None
    logprob: float | None
    top_logprobs: TopTokens
    finish_reason: str | None


@dataclass(frozen=True)
class Snapshot:
    """The states of a sequence, and the tokens that they hold. Any number of requests may go on
    from one.

    Attributes
    ----------
    logits : float32 [vocab], behind the last token; None where they are not known.
    """

    tokens: tuple[int, ...]
    state: RowState
    logits: NDArray[np.float32] | None = None

    def reusable(self, prompt: Sequence[int], predict: bool) -> tuple[int, int]:
        """How many of the prompt's tokens need not be run again, by the decoder and by the
        prediction layer. The last one is run for its logits, and for the layer's sake.
        """
        if self.logits is not None and not predict and self.tokens == tuple(prompt):
            return len(prompt), 0
        most = min(len(prompt) - 1, self.state.length)
        common = _common(self.tokens, tuple(prompt[:most]))
        if predict:
            # The prediction layer has seen each token with its follower, and must see every hidden
            # state that the decoder gives from here on.
            common = min(max(common - 1, 0), self.state.prediction_length)
        if not self.state.cuttable and common != self.state.length:
            common = 0
        return common, common if predict else 0


@dataclass(eq=False)
class SharedPrompt:
    """One prompt of several requests. The first that is admitted runs it, the others begin with its
    states; where it fails or is cancelled before, the next one runs it.

    Parameters
    ----------
    left : requests that are yet to be admitted. With the last one the states are let go.
    snapshot : the states behind the prompt, and its logits; None until it was run.
    """

    left: int
    snapshot: Snapshot | None = None


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """With how many of the same tokens both begin, at most all of `second`; by halves, as parts of
    tuples are compared faster than tokens are.
    """
    least, most = 0, len(second)
    while least < most:
        half = (least + most + 1) // 2
        if first[least:half] == second[least:half]:
            least = half
        else:
            most = half - 1
    return least


class Mark(NamedTuple):
    """How far a request was; see `Request.return_to`."""

    prompt_logprobs: int
    tokens: int
    finish_reason: str | None


class Request:
    """One sequence of a session. Made by `Session.submit`.

    Attributes
    ----------
    prompt : its IDs.
    tokens : the new ones so far.
    text : their text, None without a tokenizer.
    logprobs, top_logprobs : of each token, if asked for.
    prompt_logprobs, prompt_top_logprobs : of the prompt's tokens from the second on, if asked for.
    finish_reason : None until it has ended.
    error : what went wrong with it, if that ended it.
    reused : how many of the prompt's tokens came from a snapshot, or from a request with the same
        prompt.
    admitted : when its prompt was begun, in seconds of `time.monotonic`; None until then.
    snapshot : its states at the end, with `GenerateOptions.keep`.
    """

    def __init__(
        self,
        prompt: list[int],
        options: GenerateOptions,
        eos_token_ids: frozenset[int],
        new_stream: Callable[[], TextStream] | None,
        on_token: Callable[[Token], None] | None,
    ) -> None:
        self.prompt, self.options = prompt, options
        self.tokens: list[int] = []
        self.text: str | None = None
        self.logprobs: list[float] = []
        self.top_logprobs: list[TopTokens] = []
        self.prompt_logprobs: list[float] = []
        self.prompt_top_logprobs: list[TopTokens] = []
        self.finish_reason: str | None = None
        self.error: BaseException | None = None
        self.reused = 0
        self.admitted: float | None = None
        self.snapshot: Snapshot | None = None
        self._eos, self._new_stream, self._on_token = eos_token_ids, new_stream, on_token
        self._stream: TextStream | None = None
        self._stops = StopStrings(options.stop)
        self._cancelled = False
        self._delivered = 0  # tokens that `on_token` has had
        self._read_anew([])

    @property
    def sequence(self) -> list[int]:
        """Prompt and new tokens."""
        return self.prompt + self.tokens

    @property
    def length(self) -> int:
        """How many tokens that is."""
        return len(self.prompt) + len(self.tokens)

    @property
    def done(self) -> bool:
        """Whether it has ended, or will with the session's next step."""
        return self._cancelled or self.finish_reason is not None

    def cancel(self) -> None:
        """End it before the session's next pass; from any thread, and in `on_token`."""
        self._cancelled = True

    def choose(self, logits: Any, drafts: Sequence[int] = ()) -> int:
        """The token behind the sequence and `drafts`, from logits [vocab].

        Raises
        ------
        GlmTrtError
            If a logit is NaN, or nothing that may come is left.
        """
        sampling, position = self.options.sampling, self.length + len(drafts)
        logits = self._permitted(logits, drafts)
        if not sampling.penalises:
            return choose(logits, sampling, position, NOTHING)
        new = np.array([*self.tokens, *drafts], np.int64)
        return choose(logits, sampling, position, np.array([*self.prompt, *new]), new)

    def _permitted(self, logits: Any, drafts: Sequence[int]) -> Any:
        """Logits with the biases, and −inf for what may not come."""
        options, changed = self.options, logits
        if options.logit_bias:
            changed = changed.copy()
            changed[list(options.logit_bias)] += np.array([*options.logit_bias.values()])
        if self._eos and len(self.tokens) + len(drafts) < options.min_new_tokens:
            changed = changed.copy()
            changed[list(self._eos)] = -np.inf
        if options.constraint is not None:
            allowed = options.constraint.allowed(drafts)
            if allowed is not None:
                # Where a constraint leaves only the end, an earlier end is not to be prevented.
                of = changed if np.isfinite(changed[allowed]).any() else logits
                changed = np.where(allowed, of, -np.inf)
        if changed is not logits and changed.max() == -np.inf:
            raise GlmTrtError("no token may come: logit_bias and the constraint leave none")
        return changed

    def take_prompt(self, logits: Any, begin: int) -> None:
        """The prompt's log-probabilities, from logits [n, vocab] of its tokens from `begin` on."""
        count = self.options.prompt_logprobs
        if count is None:
            return
        for row, token in zip(logits, self.prompt[begin + 1 :], strict=False):
            logprob, best = log_probabilities(row, token, count)
            self.prompt_logprobs.append(logprob)
            self.prompt_top_logprobs.append(tuple(best))

    def take(self, token: int, logits: Any, room: bool) -> Token:
        """Append `token`, chosen from logits [vocab]; without `room` for another it ends there."""
        constraint = self.options.constraint
        if constraint is not None:
            constraint.take(token)
        logprob: float | None = None
        top: TopTokens = ()
        if self.options.logprobs is not None:
            logprob, best = log_probabilities(logits, token, self.options.logprobs)
            top = tuple(best)
            self.logprobs.append(logprob)
            self.top_logprobs.append(top)
        self.tokens.append(token)
        if token in self._eos or (constraint is not None and constraint.ended):
            self.finish_reason = STOP
        elif not room or len(self.tokens) >= self.options.max_new_tokens:
            self.finish_reason = LENGTH
        return Token(token, self._new_text(token), logprob, top, self.finish_reason)

    def fail(self, error: BaseException) -> None:
        """End it for what went wrong with it alone."""
        self.error = self.error or error
        self.cancel()

    def deliver(self, token: Token) -> BaseException | None:
        """Give the newest token to `on_token`, unless it had it before a pass was taken back.

        What `on_token` raises ends this request, and is returned: the other rows of the pass are to
        get their tokens first.
        """
        if self._on_token is None or self._delivered >= len(self.tokens):
            return None
        try:
            self._delivered += 1
            self._on_token(token)
        except BaseException as error:  # Ctrl-C is one, and no less to be kept for later
            self.fail(error)
            return error
        return None

    def mark(self) -> Mark:
        """How far it is."""
        return Mark(len(self.prompt_logprobs), len(self.tokens), self.finish_reason)

    def return_to(self, mark: Mark) -> None:
        """Take back what came since. A request that was cancelled keeps what was delivered."""
        if mark.finish_reason is not None:
            return  # nothing comes of a request that has ended
        count = max(mark.tokens, self._delivered) if self._cancelled else mark.tokens
        self._read_anew(self.tokens[:count])
        self.finish_reason = None
        for values in (self.tokens, self.logprobs, self.top_logprobs):
            del values[count:]
        for values in (self.prompt_logprobs, self.prompt_top_logprobs):
            del values[mark.prompt_logprobs :]
        if self.options.constraint is not None:
            self.options.constraint.return_to(count)

    def _read_anew(self, tokens: list[int]) -> None:
        """Text, and what may begin a stop string, as they are behind `tokens`."""
        if self._new_stream is None:
            return
        stream, stops = self._new_stream(), StopStrings(self.options.stop)
        text = "".join([stops.feed(stream.feed(token)) for token in tokens])
        self._stream, self._stops, self.text = stream, stops, text

    def _new_text(self, token: int) -> str | None:
        """What `token` adds to the text; a stop string in it ends the request."""
        if self._stream is None or self.text is None:
            return None
        piece = self._stops.feed(self._stream.feed(token))
        if self.finish_reason is not None:
            piece += self._stops.feed(self._stream.rest())
        if self._stops.found:
            self.finish_reason = STOP
        elif self.finish_reason is not None:
            piece += self._stops.rest()
        self.text += piece
        return piece
