"""What a request may want beyond its sampling: biases, penalties, least lengths, constraints, the
log-probabilities of its prompt; and requests from many threads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from glm_trt.engines.python.request import GenerateOptions, Request
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling, choose
from glm_trt.engines.python.session import Session
from glm_trt.model.errors import GlmTrtError

TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"


@pytest.fixture(scope="module")
def oracle() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def generate(session: Session, prompt: Sequence[int], options: GenerateOptions) -> Request:
    request = session.submit(prompt, options)
    session.run()
    return request


def plain(count: int, **options: Any) -> GenerateOptions:
    return GenerateOptions(count, eos_token_ids=(), **options)


def test_biases_and_least_lengths_are_those_of_transformers(
    runtime: Runtime, source: list[int], oracle: Any
) -> None:
    first = generate(runtime.session(), source[:40], plain(6)).tokens
    bias = {first[0]: -math.inf, first[1]: -3.0, first[2]: 2.5}
    biased = generate(runtime.session(), source[:40], plain(16, logit_bias=bias)).tokens
    eos = (biased[8],)  # would be the ninth, and may be the tenth at the earliest
    expected = oracle.generate(
        torch.tensor([source[:40]]), max_new_tokens=16, min_new_tokens=9, do_sample=False,
        sequence_bias={(token,): max(value, -1e9) for token, value in bias.items()},
        eos_token_id=[*eos], pad_token_id=0,
    )[0, 40:].tolist()  # fmt: skip
    options = GenerateOptions(16, eos_token_ids=eos, min_new_tokens=9, logit_bias=bias)
    for drafts in (0, 3):
        session = runtime.session(drafts=drafts)
        assert generate(session, source[:40], options).tokens == expected
    assert biased[8] not in {*biased[:8], *expected[:9]} and first[0] not in expected


@pytest.mark.parametrize("drafts", [0, 2])
def test_presence_and_frequency(runtime: Runtime, source: list[int], drafts: int) -> None:
    """Over the new tokens alone, each as often as it came."""
    sampling = Sampling(presence_penalty=0.7, frequency_penalty=0.4)
    session = runtime.session(drafts=drafts)
    found = generate(session, source[:60], plain(24, sampling=sampling)).tokens
    assert len({*found}) < len(found)  # some came twice, or frequency was not tried
    logits = runtime.forward([[*source[:60], *found]])[0, 59:-1].astype(np.float64)
    for place, (row, token) in enumerate(zip(logits, found, strict=True)):
        for seen in {*found[:place]}:
            row[seen] -= 0.7 + 0.4 * found[:place].count(seen)
        assert row.argmax() == token
    assert found != generate(session, source[:60], plain(24)).tokens


def test_log_probabilities_of_a_prompt(runtime: Runtime, source: list[int], oracle: Any) -> None:
    """In chunks, behind a prefix that holds the prompt's beginning, with and without an answer."""
    with torch.no_grad():
        expected = oracle(torch.tensor([source[:90]])).logits[0].log_softmax(-1).numpy()
    session = runtime.session(prefill_chunk=32, drafts=1)
    kept = generate(session, source[:50], plain(2, keep=True))
    other = session.submit(source[100:150], plain(30))
    for count in (0, 3):
        request = session.submit(
            source[:90], plain(count, prompt_logprobs=2), prefix=kept.snapshot
        )  # fmt: skip
        session.run()
        assert (request.reused, request.finish_reason, len(request.tokens)) == (0, "length", count)
        following = source[1:90]
        np.testing.assert_allclose(
            request.prompt_logprobs, expected[np.arange(89), following], atol=2e-4
        )
        for row, best in zip(expected, request.prompt_top_logprobs, strict=False):
            assert len(best) == 2 and best[0][0] == row.argmax()
    assert other.tokens == generate(session, source[100:150], plain(30)).tokens


class EveryThird:
    """A constraint: tokens divisible by three, 14 of them."""

    def __init__(self, vocabulary: int) -> None:
        self.taken: list[int] = []
        self._allowed = np.arange(vocabulary) % 3 == 0

    @property
    def ended(self) -> bool:
        return len(self.taken) == 14

    def allowed(self, drafts: Sequence[int]) -> NDArray[np.bool_] | None:
        behind = len(self.taken) + len(drafts)
        return self._allowed if behind < 14 else np.zeros_like(self._allowed)

    def take(self, token: int) -> None:
        assert token % 3 == 0 and not self.ended
        self.taken.append(token)

    def return_to(self, count: int) -> None:
        assert count <= len(self.taken)
        del self.taken[count:]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, top_k=50, seed=7)])
def test_a_constraint_holds_with_drafts_too(
    runtime: Runtime, source: list[int], sampling: Sampling
) -> None:
    vocabulary = runtime.bundle.config.vocab_size
    found = []
    for drafts in (0, 1, 3):
        session = runtime.session(drafts=drafts)
        beside = session.submit(source[:30], plain(20))
        constraint = EveryThird(vocabulary)
        request = session.submit(source[:30], plain(20, sampling=sampling, constraint=constraint))
        session.run()
        assert request.finish_reason == "stop" and request.tokens == constraint.taken
        found.append((request.tokens, beside.tokens))
    assert found[0] == found[1] == found[2] and len(found[0][0]) == 14
    logits = runtime.forward([[*source[:30], *found[0][0]]])[0, 29:-1]
    logits[:, np.arange(vocabulary) % 3 > 0] = -np.inf
    nothing = np.zeros(0, np.int64)
    chosen = [choose(row, sampling, 30 + i, nothing) for i, row in enumerate(logits)]
    assert chosen == found[0][0]


def test_a_constraint_is_taken_back_with_its_pass(runtime: Runtime, source: list[int]) -> None:
    expected = EveryThird(runtime.bundle.config.vocab_size)
    generate(runtime.session(), source[:30], plain(20, constraint=expected))
    session = runtime.session(max_batch=2)
    constraint = EveryThird(runtime.bundle.config.vocab_size)
    session.submit(source[:30], plain(20, constraint=constraint))
    other = session.submit(source[:10], plain(20))
    broken = [True]
    take = other.take

    def break_off(*arguments: Any, **options: Any) -> Any:
        if len(other.tokens) == 5 and broken:
            broken.pop()
            raise KeyboardInterrupt  # behind the row of the constraint, within the pass
        return take(*arguments, **options)

    other.take = break_off  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        session.run()
    session.run()
    assert constraint.taken == expected.taken


def test_what_leaves_nothing_ends_its_request_alone(runtime: Runtime, source: list[int]) -> None:
    session = runtime.session(max_batch=2)
    every = dict.fromkeys(range(runtime.bundle.config.vocab_size), -math.inf)
    bad = session.submit(source[:10], plain(4, logit_bias=every))
    good = session.submit(source[:10], plain(4))
    with pytest.raises(GlmTrtError, match="no token may come"):
        session.run()
    session.run()
    assert (bad.tokens, bad.finish_reason) == ([], "cancelled")
    assert isinstance(bad.error, GlmTrtError) and good.error is None and len(good.tokens) == 4


@pytest.mark.parametrize("wrong", [
    {"min_new_tokens": -1}, {"prompt_logprobs": -2}, {"logit_bias": {3: math.nan}},
    {"logit_bias": {3: math.inf}},
])  # fmt: skip
def test_wrong_options_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(GlmTrtError, match=f"{next(iter(wrong))}: expected"):
        GenerateOptions(**wrong)


def test_requests_from_many_threads(runtime: Runtime, source: list[int]) -> None:
    """Each gets its tokens, or the first of them if it was cancelled; nobody waits for a pass."""
    session = runtime.session(max_batch=3, drafts=1)
    prompts = [source[7 * i : 7 * i + 9 + i] for i in range(18)]
    expected = [generate(runtime.session(), prompt, plain(6)).tokens for prompt in prompts]
    requests: dict[int, Request] = {}
    cancelled = {4, 9, 14}

    def client(first: int) -> None:
        for i in range(first, len(prompts), 6):
            ready = threading.Event()

            def leave(_: Any, i: int = i, ready: threading.Event = ready) -> None:
                assert ready.wait(30)
                if i in cancelled and len(requests[i].tokens) == 2:
                    requests[i].cancel()

            requests[i] = session.submit(prompts[i], plain(6), on_token=leave)
            ready.set()

    threads = [threading.Thread(target=client, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or session.step():
        pass
    for thread in threads:
        thread.join()
    session.run()
    assert len(requests) == 18
    for i, request in requests.items():
        assert request.tokens == (expected[i][:2] if i in cancelled else expected[i]), i


def test_two_threads_do_not_step_at_once(runtime: Runtime, source: list[int]) -> None:
    session = runtime.session()
    within, go_on = threading.Event(), threading.Event()
    session.submit(source[:5], plain(1), on_token=lambda _: (within.set(), go_on.wait(30)))
    thread = threading.Thread(target=session.run)
    thread.start()
    try:
        assert within.wait(30)
        with pytest.raises(GlmTrtError, match="step: called while the session runs a pass"):
            session.step()
    finally:
        go_on.set()
        thread.join()
