"""Sampling: filters against transformers' own, draws against the distribution they are to have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glm_trt.engines.python.sampling import (
    Sampling,
    candidates,
    choose,
    gumbel,
    log_probabilities,
)
from glm_trt.model.errors import GlmTrtError

NOTHING = np.zeros(0, np.int64)


def some_logits(seed: int, vocabulary: int = 500) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, vocabulary).astype(np.float32)


@pytest.mark.parametrize("seed", range(40))
def test_filters_leave_what_transformers_leaves(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    sampling = Sampling(
        temperature=float(rng.uniform(0.2, 2)), top_k=int(rng.integers(0, 60)),
        top_p=float(rng.uniform(0.05, 1)), min_p=float(rng.uniform(0, 0.2)),
    )  # fmt: skip
    logits = some_logits(seed)
    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    warpers += [TopPLogitsWarper(sampling.top_p), MinPLogitsWarper(sampling.min_p)]
    ids = torch.zeros(1, 1, dtype=torch.long)
    expected = LogitsProcessorList(warpers)(ids, torch.from_numpy(logits.astype(np.float64))[None])
    kept = candidates(logits.astype(np.float64) / sampling.temperature, sampling)
    assert sorted(kept.tolist()) == torch.isfinite(expected[0]).nonzero().flatten().tolist()


def test_penalty_is_transformers() -> None:
    logits, occurred = some_logits(1), np.array([3, 9, 3, 400])
    processor = RepetitionPenaltyLogitsProcessor(1.7)
    for name in (3, 9, 400):  # each the best but for the penalty, or not even then
        raised = logits.copy()
        raised[name] = logits.max() * 1.5
        expected = processor(torch.from_numpy(occurred)[None], torch.from_numpy(raised)[None])
        found = choose(raised, Sampling(repetition_penalty=1.7), 4, occurred)
        assert found == int(expected.argmax())


def test_ties_go_to_the_smaller_id() -> None:
    logits = np.array([0, 2, 1, 2, 2], np.float32)
    assert choose(logits, Sampling(), 0, NOTHING) == 1
    assert candidates(logits.astype(np.float64), Sampling(1, top_k=2)).tolist() == [1, 3]
    nucleus = candidates(logits.astype(np.float64), Sampling(1, top_p=0.5))
    assert nucleus.tolist() == [1, 3]
    # The fewest that sum up to it; and what is as probable as the best, where that is asked.
    even = np.zeros(4)
    assert candidates(even, Sampling(1, top_p=0.5)).tolist() == [0, 1]
    assert candidates(logits.astype(np.float64), Sampling(1, min_p=1)).tolist() == [1, 3, 4]
    assert log_probabilities(logits, 0, 3)[1] == [
        (i, pytest.approx(float(torch.from_numpy(logits).log_softmax(0)[i]))) for i in (1, 3, 4)
    ]


def test_noise_is_philox() -> None:
    """The generator's known answer (Random123's kat_vectors: key and counter 0)."""
    words = np.random.Philox(key=0, counter=2**256 - 1).random_raw(4).tolist()
    assert words == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip
    # Any part of the noise is what the whole has there.
    ids = np.array([0, 3, 4, 1001])
    whole = gumbel(7, 55, np.arange(2000))
    np.testing.assert_array_equal(gumbel(7, 55, ids), whole[ids])
    # Each place has noise of its own, none of another token's elsewhere.
    assert not np.intersect1d(whole, gumbel(7, 56, np.arange(2000))).size
    assert np.isfinite(whole).all() and abs(whole.mean() - 0.5772) < 0.1


def test_draws_have_the_distribution() -> None:
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], np.float32)
    for sampling, kept in ((Sampling(1.0, seed=5), 6), (Sampling(0.7, top_k=3, seed=6), 3)):
        shares = torch.softmax(torch.from_numpy(logits[:kept] / sampling.temperature), 0).numpy()
        drawn = [choose(logits, sampling, position, NOTHING) for position in range(20000)]
        counts = np.bincount(drawn, minlength=6)
        assert counts[kept:].sum() == 0
        expected = shares * len(drawn)
        chi_squared = ((counts[:kept] - expected) ** 2 / expected).sum()
        assert chi_squared < 20.5  # 0.1 % for 5 degrees of freedom


def test_seed_and_place_decide() -> None:
    logits = some_logits(2) / 3
    drawn = {
        (seed, place): choose(logits, Sampling(1.0, seed=seed), place, NOTHING)
        for seed in range(8) for place in range(8)
    }  # fmt: skip
    assert len(set(drawn.values())) > 20
    # What no filter takes away is drawn with it as without.
    for (seed, place), token in drawn.items():
        loose = Sampling(1.0, top_k=499, top_p=0.99999, min_p=1e-9, seed=seed)
        assert choose(logits, loose, place, NOTHING) == token


def test_log_probabilities_are_torch_s() -> None:
    logits = some_logits(3)
    expected = torch.from_numpy(logits).double().log_softmax(0)
    found, best = log_probabilities(logits, 17, 5)
    assert found == pytest.approx(float(expected[17]), rel=1e-12)
    top = expected.topk(5)
    assert [i for i, _ in best] == top.indices.tolist()
    assert [x for _, x in best] == pytest.approx(top.values.tolist(), rel=1e-12)
    assert log_probabilities(logits, 17, 0)[1] == []
    assert len(log_probabilities(logits, 17, 1000)[1]) == 500


@pytest.mark.parametrize("wrong", [
    {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1},
    {"min_p": -0.1}, {"top_k": -1}, {"repetition_penalty": 0}, {"seed": -1}, {"seed": 1 << 64},
])  # fmt: skip
def test_bad_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(GlmTrtError, match=f"{next(iter(wrong))}: expected"):
        Sampling(**wrong)


def test_nan_is_refused_and_infinities_are_not() -> None:
    logits = some_logits(4)
    logits[5] = np.nan
    with pytest.raises(GlmTrtError, match="NaN at token 5"):
        choose(logits, Sampling(), 0, NOTHING)
    logits[:] = -np.inf
    logits[9] = 1
    for sampling in (Sampling(), Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.5)):
        assert choose(logits, sampling, 0, NOTHING) == 9
