"""Choosing a token from logits, so that a seed means the same tokens everywhere.

A choice depends on logits, options, seed and the token's place in the sequence alone: not on the
batch it was in, the chunks of its prompt, or whether a draft foresaw it. The C++ runtime follows
the same definition, number by number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.errors import GlmTrtError

Logits = NDArray[np.floating]
NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. The defaults are greedy.

    Parameters
    ----------
    temperature : 0 takes the best (ties go to the smaller ID); else logits are divided by it.
    top_k : only the k best, 0 for all. Ties go to the smaller ID.
    top_p : only the fewest of the best whose probabilities sum up to it (nucleus sampling, Holtzman
        et al. 2019), 1 for all.
    min_p : only those at least this times as probable as the best (Nguyen et al. 2024), 0 for all.
    repetition_penalty : logits of tokens that have occurred are divided by it where positive,
        multiplied where negative (Keskar et al. 2019).
    seed : of the draws, below 2⁶⁴.
    presence_penalty, frequency_penalty : taken off the logit of each token that is among the new
        ones, and as often as it is, as in OpenAI's API; −2 … 2. The C++ runtime has neither.

    Raises
    ------
    GlmTrtError
        If a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Check every value."""
        expected = {
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "min_p": (0 <= self.min_p <= 1, "0 … 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0"),
            "seed": (0 <= self.seed < 1 << 64, "0 … 2⁶⁴ − 1"),
            "presence_penalty": (-2 <= self.presence_penalty <= 2, "−2 … 2"),
            "frequency_penalty": (-2 <= self.frequency_penalty <= 2, "−2 … 2"),
        }
        for name, (good, text) in expected.items():
            if not good:
                raise GlmTrtError(f"{name}: expected {text}, found {getattr(self, name)}")

    @property
    def penalises(self) -> bool:
        """Whether a choice depends on the tokens before it, not on their number alone."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


def choose(
    logits: Logits,
    sampling: Sampling,
    position: int,
    occurred: NDArray[np.int64],
    new: NDArray[np.int64] = NOTHING,
) -> int:
    """One token for the place `position` of a sequence.

    The draw is the largest of x + Gumbel noise, which is a draw from softmax(x) (Maddison et al.
    2014), over what the options leave. The noise of a token is a function of seed, position and ID
    (Philox4x64-10, Salmon et al. 2011), so that a draft of similar logits draws the same token.

    Parameters
    ----------
    logits : float32 [vocab].
    position : the index in its sequence of the token to be chosen.
    occurred : the IDs of the sequence so far, repeated or not.
    new : those of them that were not in the prompt, as often as they came.

    Raises
    ------
    GlmTrtError
        If a logit is NaN.
    """
    _check(logits)
    greedy = sampling.temperature == 0
    if greedy and not sampling.penalises:
        return int(logits.argmax())
    x = logits.astype(np.float64)
    if sampling.repetition_penalty != 1:
        seen = np.unique(occurred)
        values, penalty = x[seen], sampling.repetition_penalty
        x[seen] = np.where(values < 0, values * penalty, values / penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        seen, counts = np.unique(new, return_counts=True)
        x[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if greedy:
        return int(x.argmax())
    x /= sampling.temperature
    ids = candidates(x, sampling)
    drawn = x[ids] + gumbel(sampling.seed, position, ids)
    return int(ids[drawn == drawn.max()].min())


def candidates(x: NDArray[np.float64], sampling: Sampling) -> NDArray[np.int64]:
    """The IDs that top-k, top-p and min-p leave, in this order: x float64 [vocab], divided by the
    temperature.
    """
    best = x.max()
    ids = np.arange(x.size)
    if 0 < sampling.top_k < x.size:
        threshold = np.partition(x, x.size - sampling.top_k)[x.size - sampling.top_k]
        ids = np.flatnonzero(x >= threshold)
        ids = ids[np.lexsort((ids, -x[ids]))][: sampling.top_k]
    if sampling.top_p < 1:
        ids = _nucleus(x, ids, sampling.top_p)
    if sampling.min_p > 0:
        ids = ids[np.exp(x[ids] - best) >= sampling.min_p]
    return ids


def _nucleus(x: NDArray[np.float64], ids: NDArray[np.int64], top_p: float) -> NDArray[np.int64]:
    """The first of `ids`, by falling x, before which less than `top_p` of their mass lies."""
    weights = np.exp(x[ids] - x[ids].max())
    total = weights.sum()
    # What cannot be in the nucleus need not be sorted: all that is lighter than an even share of
    # what is left out.
    heavy = weights >= (1 - top_p) * total / ids.size
    if weights[heavy].sum() > top_p * total:
        ids, weights = ids[heavy], weights[heavy]
    order = np.lexsort((ids, -x[ids]))
    ids, shares = ids[order], weights[order] / total
    before = np.concatenate([[0.0], np.cumsum(shares)[:-1]])
    return ids[before < top_p]


def gumbel(seed: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Noise of the tokens `ids` [n] at a place: −log(−log u).

    u = ((r >> 12) + ½) · 2⁻⁵², r being lane (id mod 4) of Philox4x64-10 with the key (seed, 0) and
    the counter (id div 4 + 1, position, 0, 0).
    """
    bits = np.random.Philox(key=seed, counter=position << 64)
    raw = bits.random_raw(int(ids.max()) + 1)[ids]
    uniform = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -np.log(-np.log(uniform))


def log_probabilities(
    logits: Logits, chosen: int, count: int
) -> tuple[float, list[tuple[int, float]]]:
    """The natural logarithm of the model's own probability of `chosen`, and the `count` most
    probable tokens with theirs (ties: the smaller ID first): before penalty, temperature, filters.
    """
    x = logits.astype(np.float64)
    best = x.max()
    normaliser = best + np.log(np.exp(x - best).sum())
    ids = np.arange(x.size)
    if 0 < count < x.size:
        ids = np.flatnonzero(x >= np.partition(x, x.size - count)[x.size - count])
    ids = ids[np.lexsort((ids, -x[ids]))][:count]
    return float(x[chosen] - normaliser), [(int(i), float(x[i] - normaliser)) for i in ids]


def _check(logits: Logits) -> None:
    if np.isnan(logits).any():
        token = int(np.flatnonzero(np.isnan(logits))[0])
        raise GlmTrtError(f"logits: expected finite numbers or -inf, found NaN at token {token}")
