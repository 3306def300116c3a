"""Generating for several requests at once: admission, chunked prefill, decoding, streaming."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from glm_trt.engines.python.backend import Backend, Batch, RowState
from glm_trt.engines.python.sampling import Sampling, choose, log_probabilities
from glm_trt.engines.python.speculation import Drafts, Statistics
from glm_trt.engines.python.stopping import StopStrings
from glm_trt.engines.python.text import Text, TextStream
from glm_trt.model.errors import GlmTrtError

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"
NOTHING = np.zeros(0, np.int64)


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
    """

    max_new_tokens: int = 32
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        """Check what no other class does."""
        for name in ("max_new_tokens", "logprobs"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise GlmTrtError(f"{name}: expected 0 or more, found {value}")


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
    top_logprobs: tuple[tuple[int, float], ...]
    finish_reason: str | None


@dataclass(frozen=True)
class Snapshot:
    """The states of a sequence, and the tokens that they hold. Any number of requests may go on
    from one.
    """

    tokens: tuple[int, ...]
    state: RowState

    def reusable(self, prompt: Sequence[int], predict: bool) -> tuple[int, int]:
        """How many of the prompt's tokens need not be run again, by the decoder and by the
        prediction layer. The last one is always run, for its logits.
        """
        most = min(len(prompt) - 1, self.state.length)
        common = next((i for i in range(most) if self.tokens[i] != prompt[i]), most)
        if predict:
            # The prediction layer has seen each token with its follower, and must see every hidden
            # state that the decoder gives from here on.
            common = min(max(common - 1, 0), self.state.prediction_length)
        if not self.state.cuttable and common != self.state.length:
            common = 0
        return common, common if predict else 0


class Request:
    """One sequence of a session. Made by `Session.submit`.

    Attributes
    ----------
    prompt : its IDs.
    tokens : the new ones so far.
    text : their text, None without a tokenizer.
    logprobs, top_logprobs : of each token, if asked for.
    finish_reason : None until it has ended.
    reused : how many of the prompt's tokens came from a snapshot.
    snapshot : its states at the end, with `GenerateOptions.keep`.
    """

    def __init__(
        self,
        prompt: list[int],
        options: GenerateOptions,
        eos_token_ids: frozenset[int],
        stream: TextStream | None,
        on_token: Callable[[Token], None] | None,
    ) -> None:
        self.prompt, self.options = prompt, options
        self.tokens: list[int] = []
        self.text: str | None = None if stream is None else ""
        self.logprobs: list[float] = []
        self.top_logprobs: list[tuple[tuple[int, float], ...]] = []
        self.finish_reason: str | None = None
        self.reused = 0
        self.snapshot: Snapshot | None = None
        self._eos, self._stream, self._on_token = eos_token_ids, stream, on_token
        self._stops = StopStrings(options.stop)
        self._cancelled = False

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
        """The token behind the sequence and `drafts`, from logits [vocab]."""
        sampling, position = self.options.sampling, self.length + len(drafts)
        if sampling.repetition_penalty == 1:
            return choose(logits, sampling, position, NOTHING)
        return choose(logits, sampling, position, np.array([*self.sequence, *drafts]))

    def take(self, token: int, logits: Any, room: bool) -> None:
        """Append `token`, chosen from logits [vocab]; without `room` for another it ends there."""
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if self.options.logprobs is not None:
            logprob, best = log_probabilities(logits, token, self.options.logprobs)
            top = tuple(best)
            self.logprobs.append(logprob)
            self.top_logprobs.append(top)
        self.tokens.append(token)
        if token in self._eos:
            self.finish_reason = STOP
        elif not room or len(self.tokens) >= self.options.max_new_tokens:
            self.finish_reason = LENGTH
        text = self._new_text(token)
        if self._on_token is not None:
            self._on_token(Token(token, text, logprob, top, self.finish_reason))

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


class Session:
    """Requests that come and go, each with exactly the tokens that it would get alone.

    A step runs one chunk of a prompt that is being admitted, and one pass over all sequences that
    are decoding. Not to be used from several threads; `Request.cancel` may be.

    Parameters
    ----------
    backend : what runs the passes.
    text : the tokenizer; None to give IDs alone.
    max_batch : sequences at once; further requests wait.
    prefill_chunk : tokens of a prompt in a pass, at most what the backend says (if None, that).
    drafts : how many tokens the prediction layer foretells in each pass (speculative decoding).
        They change which passes are run, not which tokens come.

    Raises
    ------
    GlmTrtError
        If a number is out of range, or `drafts` are wanted of a bundle without a prediction layer.
    """

    def __init__(
        self,
        backend: Backend,
        text: Text | None = None,
        *,
        max_batch: int = 8,
        prefill_chunk: int | None = None,
        drafts: int = 0,
    ) -> None:
        for name, value, least in (
            ("max_batch", max_batch, 1), ("prefill_chunk", prefill_chunk, 1), ("drafts", drafts, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise GlmTrtError(f"{name}: expected {least} or more, found {value}")
        if drafts and not backend.bundle.prediction_blocks:
            raise GlmTrtError(
                f"{backend.bundle.directory}: has no prediction layer (its checkpoint had none) to "
                "draft tokens with"
            )
        self._backend, self._bundle, self._text = backend, backend.bundle, text
        self._max_batch, self._chunk = max_batch, prefill_chunk
        self._batch: Batch = backend.batch(max_batch, predict=drafts > 0)
        self._drafts = Drafts(self._batch, drafts)
        self._waiting: deque[tuple[Request, Snapshot | None]] = deque()
        self._decoding: list[Request] = []  # their rows are their places
        self._admitting: Request | None = None  # its row is the first behind them
        self._prefilled = 0
        self._failure: Exception | None = None

    @property
    def has_text(self) -> bool:
        """Whether requests get text, not IDs alone."""
        return self._text is not None

    @property
    def statistics(self) -> Statistics:
        """Passes, tokens and drafts so far."""
        return self._drafts.statistics

    def submit(
        self,
        prompt: Sequence[int],
        options: GenerateOptions | None = None,
        *,
        on_token: Callable[[Token], None] | None = None,
        prefix: Snapshot | None = None,
    ) -> Request:
        """Queue a request; `step` or `run` does the work.

        Parameters
        ----------
        prompt : token IDs, one at least.
        on_token : called with each token as it comes. What it raises ends the request, and comes
            out of `step`.
        prefix : where the prompt begins with its tokens, they are not run again.

        Raises
        ------
        GlmTrtError
            If the prompt is empty, too long, or not made of the model's tokens; if stop strings are
            wanted without a tokenizer.
        """
        options = options or GenerateOptions()
        ids = checked_ids(prompt, self._bundle.config.vocab_size)
        if len(ids) > self._bundle.max_seq_len:
            raise GlmTrtError(
                f"prompt of {len(ids)} tokens: the bundle was exported for "
                f"{self._bundle.max_seq_len} (--max-seq-len)"
            )
        if options.stop and self._text is None:
            raise GlmTrtError(f"{self._bundle.directory}: stop strings need a tokenizer")
        eos = (
            self._bundle.eos_token_ids() if options.eos_token_ids is None else options.eos_token_ids
        )
        stream = None if self._text is None else self._text.stream()
        request = Request(ids, options, frozenset(eos), stream, on_token)
        if options.max_new_tokens == 0:
            request.finish_reason = LENGTH
        else:
            self._waiting.append((request, prefix))
        return request

    def run(self) -> None:
        """Step until every request has ended."""
        while self.step():
            pass

    def step(self) -> bool:
        """One chunk of a prompt and one token (or more, with drafts) of every sequence; whether
        there is more to do.
        """
        self._remove_done()
        if self._admitting is None:
            self._admit()
        if self._admitting is not None:
            self._prefill(self._admitting)
            self._remove_done()  # its first token may have been its last
        if self._decoding:
            self._decode()
        self._remove_done()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return bool(self._waiting or self._decoding or self._admitting)

    def snapshot(self, request: Request) -> Snapshot:
        """The states of a request that is decoding.

        Raises
        ------
        GlmTrtError
            If it waits, is being admitted, or has ended.
        """
        if request not in self._decoding:
            raise GlmTrtError("snapshot: expected a request that is decoding")
        state = self._batch.save(self._decoding.index(request))
        return Snapshot(tuple(request.sequence[: state.length]), state)

    def _admit(self) -> None:
        """Put the next request that waits into the first free row."""
        while self._waiting and self._waiting[0][0].done:
            self._end(self._waiting.popleft()[0])
        if not self._waiting or len(self._decoding) == self._max_batch:
            return
        self._admitting, prefix = self._waiting.popleft()
        row, predict = len(self._decoding), self._drafts.count > 0
        self._batch.clear(row)
        self._prefilled = 0
        if prefix is not None:
            length, predicted = prefix.reusable(self._admitting.prompt, predict)
            if length:
                self._batch.restore(row, prefix.state, length, predicted)
                self._prefilled = self._admitting.reused = length

    def _prefill(self, request: Request) -> None:
        """Run the next chunk of the prompt; after the last one the request decodes."""
        row, begin = len(self._decoding), self._prefilled
        most = self._backend.most_tokens(len(request.prompt))
        end = min(begin + min(self._chunk or most, most), len(request.prompt))
        ids = np.array([request.prompt[begin:end]])
        is_last = end == len(request.prompt)
        logits = self._batch.step(ids, first=row, logits="last" if is_last else "none")
        self._prefilled = end
        self.statistics.prompt_tokens += end - begin
        if not is_last:
            self._drafts.prefill(np.array([request.prompt[begin + 1 : end + 1]]))
            return
        self._admitting = None
        self._decoding.append(request)
        self._take(request, logits[0, 0])
        if not request.done:
            following = [*request.prompt[begin + 1 :], request.tokens[-1]]
            self._drafts.admit(request, np.array([following]))

    def _decode(self) -> None:
        """One pass over every sequence that decodes: its newest token and the drafts behind it."""
        requests = self._decoding
        ids, lengths = self._drafts.proposed(requests, [self._room(x) for x in requests])
        logits = self._batch.step(ids, lengths, logits="all" if ids.shape[1] > 1 else "last")
        taken = np.zeros(len(requests), np.int64)
        for i, request in enumerate(requests):
            for j in range(int(lengths[i])):
                self._take(request, logits[i, j])
                taken[i] += 1
                if request.done or j + 1 == lengths[i] or request.tokens[-1] != ids[i, j + 1]:
                    break  # it has ended, or the draft behind was another
        self._drafts.taken(requests, lengths, taken)

    def _take(self, request: Request, logits: Any) -> None:
        """The next token of `request`, from logits [vocab]."""
        try:
            token = request.choose(logits)
            self.statistics.new_tokens += 1
            request.take(token, logits, room=self._room(request) > 1)
        except Exception as error:
            request.cancel()
            # The others of the pass are to get their tokens first.
            self._failure = self._failure or error

    def _room(self, request: Request) -> int:
        """How many more tokens may come."""
        of_request = request.options.max_new_tokens - len(request.tokens)
        # The last token is not run, so it needs no room in the states.
        return min(of_request, self._bundle.max_seq_len + 1 - request.length)

    def _remove_done(self) -> None:
        """Free the rows of requests that have ended, by moving the last one there."""
        if self._admitting is not None and self._admitting.done:
            self._end(self._admitting)
            self._admitting = None
        for row in reversed(range(len(self._decoding))):
            request = self._decoding[row]
            if not request.done:
                continue
            if request.options.keep:
                request.snapshot = self.snapshot(request)
            last = len(self._decoding) - 1
            if row != last:
                self._batch.move(last, row)
                self._decoding[row] = self._decoding[last]
            if self._admitting is not None:
                self._batch.move(last + 1, last)
            self._decoding.pop()
            self._drafts.forget(request)
            self._end(request)

    @staticmethod
    def _end(request: Request) -> None:
        request.finish_reason = request.finish_reason or CANCELLED


def checked_ids(ids: Sequence[int] | Any, vocabulary: int) -> list[int]:
    """Token IDs as a list.

    Raises
    ------
    GlmTrtError
        If there is none, or one is not an integer below `vocabulary`.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise GlmTrtError(
            f"input_ids: expected integers [S], not empty; found {array.dtype} {array.shape}"
        )
    if array.min() < 0 or array.max() >= vocabulary:
        found = int(array.min() if array.min() < 0 else array.max())
        raise GlmTrtError(f"input_ids: expected ids below {vocabulary}, found {found}")
    numbers: list[int] = array.tolist()
    return numbers
