"""Generating for several requests at once: admission, chunked prefill, decoding, streaming."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.python.backend import Backend, Batch, Kept
from glm_trt.engines.python.request import (
    CANCELLED,
    LENGTH,
    GenerateOptions,
    Mark,
    Request,
    Snapshot,
    Token,
)
from glm_trt.engines.python.speculation import Drafts, Statistics
from glm_trt.engines.python.text import Text
from glm_trt.model.errors import GlmTrtError

MOST_LOGITS = 1 << 25  # of a prompt whose every logit is wanted, in a pass: 128 MB


@dataclass(frozen=True)
class _Standing:
    """What a session is taken back to when its pass is broken off."""

    batch: Any
    drafts: Any
    decoding: tuple[tuple[Request, Mark], ...]
    admitting: tuple[Request, Mark] | None
    row: int
    prefilled: int


class Session:
    """Requests that come and go, each with exactly the tokens that it would get alone.

    A step runs one chunk of a prompt that is being admitted, and one pass over all sequences that
    are decoding. One thread at a time steps; `submit` and `Request.cancel` are for any thread.

    A pass is finished, or taken back, for all of its rows. It is finished where `on_token` raises,
    whatever that is. Whatever else breaks it off, such as Ctrl-C, takes it back, and the next step
    runs it anew; tokens that `on_token` has had are not given to it twice.

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
        self._admitting: Request | None = None
        self._row = 0  # of the request that is being admitted: behind those that decode
        self._prefilled = 0
        self._known: NDArray[np.float32] | None = None  # its prompt's logits, where none is to run
        self._failure: BaseException | None = None
        self._stepping = threading.Lock()
        self._commit()
        self._is_settled = True  # nothing since the latest `_commit`

    @property
    def max_batch(self) -> int:
        """Sequences at once."""
        return self._max_batch

    @property
    def drafts(self) -> int:
        """Tokens that the prediction layer foretells in each pass."""
        return self._drafts.count

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
            out of `step` when all rows of the pass have their tokens.
        prefix : where the prompt begins with its tokens, they are not run again.

        Raises
        ------
        GlmTrtError
            If the prompt is empty, too long, or not made of the model's tokens; if stop strings are
            wanted without a tokenizer.
        """
        options = options or GenerateOptions()
        ids = self.check(prompt, options)
        eos = (
            self._bundle.eos_token_ids() if options.eos_token_ids is None else options.eos_token_ids
        )
        new_stream = None if self._text is None else self._text.stream
        request = Request(ids, options, frozenset(eos), new_stream, on_token)
        if options.max_new_tokens == 0 and options.prompt_logprobs is None:
            request.finish_reason = LENGTH
        else:
            self._waiting.append((request, prefix))
        return request

    def check(self, prompt: Sequence[int], options: GenerateOptions) -> list[int]:
        """The prompt's IDs, if it and the options can be submitted; errors as in `submit`."""
        vocabulary = self._bundle.config.vocab_size
        ids = checked_ids(prompt, vocabulary)
        if len(ids) > self._bundle.max_seq_len:
            raise GlmTrtError(
                f"prompt of {len(ids)} tokens: the bundle was exported for "
                f"{self._bundle.max_seq_len} (--max-seq-len)"
            )
        if options.stop and self._text is None:
            raise GlmTrtError(f"{self._bundle.directory}: stop strings need a tokenizer")
        if beyond := [token for token in options.logit_bias if not 0 <= token < vocabulary]:
            raise GlmTrtError(f"logit_bias: expected ids below {vocabulary}, found {beyond[0]}")
        return ids

    def run(self) -> None:
        """Step until every request has ended."""
        while self.step():
            pass

    def step(self) -> bool:
        """One chunk of a prompt and one token (or more, with drafts) of every sequence; whether
        there is more to do.

        Raises
        ------
        GlmTrtError
            If a pass is under way: it is called from `on_token`, or from another thread.
        """
        if not self._stepping.acquire(blocking=False):
            raise GlmTrtError(
                "step: called while the session runs a pass (from on_token, or by another thread)"
            )
        try:
            self._settle()
            self._run_passes()
        except BaseException:
            self._settle()
            raise
        finally:
            self._stepping.release()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return bool(self._waiting or self._decoding or self._admitting)

    def snapshot(self, request: Request) -> Snapshot:
        """The states of a request that is decoding; in `on_token`, those before the pass.

        Raises
        ------
        GlmTrtError
            If it waits, is being admitted, or has ended.
        """
        if not self._stepping.locked():
            self._settle()
        if request not in self._decoding:
            raise GlmTrtError("snapshot: expected a request that is decoding")
        standing = self._standing
        rows = {held: row for row, (held, _) in enumerate(standing.decoding)}
        # In the pass that ends its prompt it has the row of the request that is being admitted.
        return self._saved(request, rows.get(request, standing.row))

    def _saved(self, request: Request, row: int) -> Snapshot:
        """The states that `row` has for `request` when no pass is under way."""
        now = self._batch.standing()
        self._batch.return_to(self._standing.batch)
        try:
            state = self._batch.save(row)
        finally:
            self._batch.return_to(now)
        return Snapshot(tuple(request.sequence[: state.length]), state)

    def _commit(self) -> None:
        """What is so far is so, whatever breaks off what follows."""
        self._standing = _Standing(
            self._batch.standing(),
            self._drafts.standing(),
            tuple((request, request.mark()) for request in self._decoding),
            None if self._admitting is None else (self._admitting, self._admitting.mark()),
            self._row,
            self._prefilled,
        )

    def _settle(self) -> None:
        """Take back what was broken off since the latest `_commit`; nothing if nothing was."""
        if self._is_settled:
            return
        standing = self._standing
        self._batch.return_to(standing.batch)
        self._drafts.return_to(standing.drafts)
        for request, mark in (*standing.decoding, *filter(None, [standing.admitting])):
            request.return_to(mark)
        self._decoding = [request for request, _ in standing.decoding]
        self._admitting = None if standing.admitting is None else standing.admitting[0]
        self._row, self._prefilled = standing.row, standing.prefilled
        if self._waiting and self._waiting[0][0] is self._admitting:
            self._waiting.popleft()
        self._is_settled = True

    def _run_passes(self) -> None:
        """The work of a step; what cannot be taken back is done only to rows that nobody needs."""
        self._is_settled = False
        self._remove_done()
        if self._admitting is None:
            self._admit()
        if self._admitting is not None:
            self._prefill(self._admitting)
            self._remove_done()  # its first token may have been its last
        if self._decoding:
            self._decode()
        self._remove_done()
        self._is_settled = True

    def _admit(self) -> None:
        """Put the next request that waits into the first free row."""
        while self._waiting and self._waiting[0][0].done:
            self._end(self._waiting[0][0])
            self._waiting.popleft()
        if not self._waiting or len(self._decoding) == self._max_batch:
            return
        request, prefix = self._waiting[0]
        row, predict = len(self._decoding), self._drafts.count > 0
        self._batch.clear(row)
        self._prefilled, self._known = 0, None
        shared = request.options.shared
        if shared is not None and shared.snapshot is not None:
            prefix = shared.snapshot
        if prefix is not None and request.options.prompt_logprobs is None:
            length, predicted = prefix.reusable(request.prompt, predict)
            if length:
                self._batch.restore(row, prefix.state, length, predicted)
                self._prefilled = request.reused = length
                self._known = prefix.logits
        request.admitted = time.monotonic()
        self._admitting, self._row = request, row
        self._commit()
        self._waiting.popleft()
        if shared is not None:
            shared.left -= 1
            if shared.left <= 0:
                shared.snapshot = None

    def _prefill(self, request: Request) -> None:
        """Run the next chunk of the prompt; after the last one the request decodes."""
        begin, wants_all = self._prefilled, request.options.prompt_logprobs is not None
        if begin == len(request.prompt):
            assert self._known is not None
            self._begin(request, self._known)
            self._commit()
            return
        most = self._backend.most_tokens(len(request.prompt))
        if wants_all:
            most = min(most, max(MOST_LOGITS // self._bundle.config.vocab_size, 1))
        end = min(begin + min(self._chunk or most, most), len(request.prompt))
        ids = np.array([request.prompt[begin:end]])
        is_last = end == len(request.prompt)
        wanted: Kept = "all" if wants_all else "last" if is_last else "none"
        logits = self._batch.step(ids, first=self._row, logits=wanted)
        self._prefilled = end
        self.statistics.prompt_tokens += end - begin
        if wants_all:
            request.take_prompt(logits[0], begin)
        if is_last and request.options.max_new_tokens == 0:
            request.finish_reason = LENGTH
        elif is_last:
            self._begin(request, logits[0, -1])
            following = np.array([[*request.prompt[begin + 1 :], *request.tokens[-1:]]])
            if not request.done:
                self._drafts.admit(request, following)
            elif _is_awaited(request) and request.tokens:
                self._drafts.prefill(following)  # for those whose drafts begin here
            if _is_awaited(request):
                self._share(request, logits[0, -1])
        else:
            self._drafts.prefill(np.array([request.prompt[begin + 1 : end + 1]]))
        self._commit()

    def _begin(self, request: Request, logits: NDArray[np.float32]) -> None:
        """Its prompt was run, and gave these logits [vocab]: it decodes."""
        self._admitting = None
        self._decoding.append(request)
        self._take(request, logits)

    def _share(self, request: Request, logits: NDArray[np.float32]) -> None:
        """Keep the states behind its prompt, and its logits [vocab], for those that have it too."""
        shared = request.options.shared
        assert shared is not None
        state = self._batch.save(self._row)
        shared.snapshot = Snapshot(tuple(request.prompt), state, logits.copy())

    def _decode(self) -> None:
        """One pass over every sequence that decodes: its newest token and the drafts behind it."""
        requests = self._decoding
        self._batch.align(len(requests))
        self._commit()
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
        self._commit()

    def _take(self, request: Request, logits: Any) -> None:
        """The next token of `request`, from logits [vocab]. What goes wrong with one request ends
        it; the others of the pass are to get their tokens first.
        """
        failure: BaseException | None
        try:
            token = request.choose(logits)
            self.statistics.new_tokens += 1
            made = request.take(token, logits, room=self._room(request) > 1)
        except Exception as error:
            request.fail(error)
            failure = error
        else:
            failure = request.deliver(made)
        self._failure = self._failure or failure

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
            self._commit()
        for row in reversed(range(len(self._decoding))):
            request = self._decoding[row]
            if not request.done:
                continue
            if request.options.keep and request.snapshot is None:
                request.snapshot = self._saved(request, row)
            last = self._decoding.pop()
            if last is not request:
                self._batch.move(len(self._decoding), row)
                self._decoding[row] = last
            self._drafts.forget(request)
            self._end(request)
            self._commit()
        if self._admitting is not None and self._row != len(self._decoding):
            self._batch.move(self._row, len(self._decoding))
            self._row = len(self._decoding)
            self._commit()

    @staticmethod
    def _end(request: Request) -> None:
        request.finish_reason = request.finish_reason or CANCELLED


def _is_awaited(request: Request) -> bool:
    """Whether others are to begin with what its prompt gives."""
    shared = request.options.shared
    return shared is not None and shared.left > 0 and shared.snapshot is None


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
