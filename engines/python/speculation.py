"""Speculative decoding: drafts of the multi-token-prediction layer, verified by the next pass.

A draft is the token that sampling would choose from the prediction layer's logits, with the noise
of its place; a pass over the newest token and the drafts behind it then gives the logits of each
place, from which tokens are chosen as ever, as long as they agree with the drafts. So every token
is the one that plain decoding chooses, greedy or sampled: a draft that differs costs a place in a
pass, no more. (Leviathan et al., arXiv 2211.17192, keep the distribution; here the draws themselves
are the same.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.python.backend import Batch
from glm_trt.model.errors import GlmTrtError


class Drafted(Protocol):
    """What drafts are made for: a request."""

    tokens: list[int]

    @property
    def done(self) -> bool:
        """Whether it needs no more."""
        ...

    def choose(self, logits: Any, drafts: Sequence[int] = ()) -> int:
        """The token that it would choose behind its sequence and `drafts`, from logits [vocab]."""
        ...


@dataclass
class Statistics:
    """What a session did.

    Attributes
    ----------
    passes : over the sequences that decode.
    prompt_tokens : that were run, those from a snapshot not among them.
    new_tokens : that came.
    drafted, accepted : drafts by their place behind the newest token: verified, and found right.
    """

    passes: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    @property
    def acceptance(self) -> float | None:
        """The share of the drafts that were right; None where there was none."""
        return sum(self.accepted) / sum(self.drafted) if sum(self.drafted) else None


class Drafts:
    """The drafts of a batch's sequences.

    Parameters
    ----------
    batch : made with `predict` where `count` is not 0.
    count : drafts a pass. The second and further ones come from the prediction layer's own hidden
        state, for which it was not trained: they are right less often.
    """

    def __init__(self, batch: Batch, count: int) -> None:
        self.count = count
        self.statistics = Statistics(drafted=[0] * count, accepted=[0] * count)
        self._batch = batch
        self._drafts: dict[Drafted, list[int]] = {}

    def standing(self) -> tuple[dict[Drafted, list[int]], Statistics]:
        """What is proposed and counted so far, for `return_to`."""
        of = self.statistics
        return self._drafts.copy(), replace(of, drafted=[*of.drafted], accepted=[*of.accepted])

    def return_to(self, standing: tuple[dict[Drafted, list[int]], Statistics]) -> None:
        """Take back what came since; who looks at `statistics` sees it."""
        drafts, statistics = standing
        self._drafts = drafts.copy()
        for of in fields(statistics):
            value = getattr(statistics, of.name)
            setattr(self.statistics, of.name, [*value] if isinstance(value, list) else value)

    def prefill(self, following: NDArray[np.int64]) -> None:
        """After a part of a prompt: following [1, S] are the tokens behind each of its tokens."""
        if self.count:
            self._batch.predict(following, np.array([following.shape[1]]))

    def admit(self, request: Drafted, following: NDArray[np.int64]) -> None:
        """After the last part: the last of following [1, S] is the request's first token."""
        if self.count:
            logits = self._batch.predict(following, np.array([following.shape[1]]))
            self._draft([request], logits)

    def proposed(
        self, requests: Sequence[Drafted], room: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What the next pass runs: ids [n, S], each request's newest token and its drafts, and how
        many of a row's S there are [n].

        Parameters
        ----------
        room : how many more tokens may come of each request; no draft beyond them is verified.
        """
        drafts = [self._drafts.get(x, [])[: n - 1] for x, n in zip(requests, room, strict=True)]
        lengths = np.array([1 + len(row) for row in drafts])
        ids = np.zeros((len(requests), lengths.max()), np.int64)
        for row, request, proposed in zip(ids, requests, drafts, strict=True):
            row[: 1 + len(proposed)] = [request.tokens[-1], *proposed]
        return ids, lengths

    def taken(
        self, requests: Sequence[Drafted], lengths: NDArray[np.int64], taken: NDArray[np.int64]
    ) -> None:
        """After the pass over `lengths` [n] proposed tokens, behind which `taken` [n] new ones
        came: the others are dropped, and new drafts made.
        """
        self.statistics.passes += 1
        if not self.count:
            return
        for proposed, count in zip(lengths.tolist(), taken.tolist(), strict=True):
            for place in range(min(proposed - 1, count)):
                self.statistics.drafted[place] += 1
                self.statistics.accepted[place] += place < count - 1
        self._batch.keep(taken)
        if all(request.done for request in requests):
            return
        following = np.zeros((len(requests), lengths.max()), np.int64)
        for row, request, count in zip(following, requests, taken.tolist(), strict=True):
            row[:count] = request.tokens[len(request.tokens) - count :]
        self._draft(requests, self._batch.predict(following, taken))

    def forget(self, request: Drafted) -> None:
        """The request has ended."""
        self._drafts.pop(request, None)

    def _draft(self, requests: Sequence[Drafted], logits: NDArray[np.float32]) -> None:
        """New drafts from the prediction layer's logits [n, 1, vocab]. A row whose logits are none
        (NaN), or behind whose drafts nothing may come, gets no further ones: its tokens come
        plainly, the others' with their drafts.
        """
        drafts: list[list[int]] = [[] for _ in requests]
        for place in range(self.count):
            for row, request, of_row in zip(logits, requests, drafts, strict=True):
                if len(of_row) == place:
                    with suppress(GlmTrtError):
                        of_row.append(request.choose(row[0], of_row))
            if place + 1 < self.count:
                newest = [row[-1] if row else 0 for row in drafts]
                logits = self._batch.predict_further(np.array(newest)[:, np.newaxis])
        self._drafts.update(zip(requests, drafts, strict=True))
