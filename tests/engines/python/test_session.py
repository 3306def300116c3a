"""Sessions: a request gets the tokens that the eager model gives it alone, whatever else runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_oracle, save
from hybrids import make_hybrid, save_hybrid

import glm_trt
from glm_trt.engines.python.request import GenerateOptions, Request, SharedPrompt, Token
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.python.session import Session
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.weights import load_model
from glm_trt.model.errors import GlmTrtError

TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"
LENGTHS = (1, 17, 300, 1200)


def eager_tokens(checkpoint: Path, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy decoding by the eager model, with its states."""
    model = load_model(Checkpoint.open(checkpoint))
    states = model.empty_states(1, len(prompt) + count)
    ids, past, tokens = torch.tensor([list(prompt)]), torch.zeros(1).long(), []
    for _ in range(count):
        logits, states = model(ids, states, past)
        past = past + ids.shape[1]
        ids = logits[:, -1:].argmax(-1)
        tokens.append(int(ids))
    return tokens


def options(count: int, **sampling: Any) -> GenerateOptions:
    return GenerateOptions(count, Sampling(**sampling), eos_token_ids=())


def test_prompts_of_different_lengths_come_and_go(runtime: Runtime, source: list[int]) -> None:
    """Two join when others decode, one leaves early, one is cancelled."""
    prompts = [source[7 * n : 8 * n] if n < 1000 else source[:n] for n in LENGTHS]
    expected = [eager_tokens(TINY, prompt, 24) for prompt in prompts]
    session = runtime.session(max_batch=4, prefill_chunk=128)
    first = [session.submit(prompts[2], options(24)), session.submit(prompts[0], options(6))]
    for _ in range(8):
        session.step()
    assert first[0].tokens and not first[0].done
    late = [session.submit(prompts[3], options(24)), session.submit(prompts[1], options(24))]
    lost = session.submit(source[100:140], options(50))
    while len(lost.tokens) < 5:
        session.step()
    lost.cancel()
    session.run()
    assert first[0].tokens == expected[2]
    assert first[1].tokens == expected[0][:6]
    assert [x.tokens for x in late] == [expected[3], expected[1]]
    assert lost.finish_reason == "cancelled"
    assert lost.tokens == eager_tokens(TINY, source[100:140], len(lost.tokens))


def test_more_requests_than_rows(runtime: Runtime, source: list[int]) -> None:
    prompts = [source[i * 50 : i * 50 + 5 + 3 * i] for i in range(9)]
    alone = [runtime.generate([x], 12, eos_token_ids=())[0] for x in prompts]
    for rows, chunk in ((1, None), (3, 4), (8, 1)):
        session = runtime.session(max_batch=rows, prefill_chunk=chunk)
        requests = [session.submit(x, options(12)) for x in prompts]
        session.run()
        assert [x.tokens for x in requests] == alone, rows
    sampled = options(12, temperature=0.9, top_p=0.95, repetition_penalty=1.2, seed=11)
    results = []
    for rows in (1, 5):
        session = runtime.session(max_batch=rows)
        requests = [session.submit(x, sampled) for x in prompts]
        session.run()
        results.append([x.tokens for x in requests])
    assert results[0] == results[1] != alone


def test_states_of_every_kind_move_with_their_sequence(tmp_path: Path) -> None:
    """Linear layers' states are read and written by turns, which rows reach at different times."""
    save_hybrid(make_hybrid("linear_first"), tmp_path / "c")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(dtypes=("float32",)))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 97, n).tolist() for n in (5, 1, 40, 13, 150)]
    counts = [9, 30, 3, 17, 12]
    expected = [eager_tokens(tmp_path / "c", x, n) for x, n in zip(prompts, counts, strict=True)]
    with glm_trt.load(tmp_path / "b") as runtime:
        for chunk in (7, 64):
            session = runtime.session(max_batch=3, prefill_chunk=chunk)
            pairs = zip(prompts, counts, strict=True)
            requests = [session.submit(x, options(n)) for x, n in pairs]
            session.run()
            assert [x.tokens for x in requests] == expected, chunk
        session = runtime.session(max_batch=2, prefill_chunk=7)
        shared = SharedPrompt(3)
        several = [session.submit(prompts[2], replace(options(6), shared=shared)) for _ in "abc"]
        session.run()
        assert [x.tokens for x in several] == [eager_tokens(tmp_path / "c", prompts[2], 6)] * 3
        assert session.statistics.prompt_tokens == len(prompts[2])
        snapshot = continued(runtime.session(max_batch=2), prompts[2], 3)
        session = runtime.session(max_batch=2)
        longer = [*snapshot.prompt, *snapshot.tokens, 5, 6]
        request = session.submit(longer, options(5), prefix=snapshot.snapshot)
        session.run()
        assert request.reused == len(prompts[2]) + 2
        assert request.tokens == eager_tokens(tmp_path / "c", longer, 5)
        # A state that sums up all its tokens is of no use to a prompt that parts from them.
        parted = [*prompts[2][:20], 9, 9, 9]
        request = session.submit(parted, options(5), prefix=snapshot.snapshot)
        session.run()
        assert request.reused == 0
        assert request.tokens == eager_tokens(tmp_path / "c", parted, 5)


def continued(session: Session, prompt: list[int], count: int) -> Request:
    request = session.submit(prompt, GenerateOptions(count, eos_token_ids=(), keep=True))
    session.run()
    return request


def test_a_conversation_goes_on_without_a_second_prefill(
    runtime: Runtime, source: list[int]
) -> None:
    for drafts in (0, 2):
        session = runtime.session(drafts=drafts)
        first = continued(session, source[:400], 10)
        assert first.snapshot is not None
        assert list(first.snapshot.tokens) == first.sequence[: len(first.snapshot.tokens)]
        longer = [*first.sequence, *source[400:420]]
        before = session.statistics.prompt_tokens
        second = session.submit(longer, options(8), prefix=first.snapshot)
        session.run()
        assert second.reused >= 409 - 3 * drafts
        assert session.statistics.prompt_tokens - before == len(longer) - second.reused
        assert second.tokens == runtime.generate([longer], 8, eos_token_ids=())[0]
        # Only as far as the prompts agree; the same snapshot serves again.
        parted = [*source[:150], *source[1000:1050]]
        third = session.submit(parted, options(8), prefix=first.snapshot)
        again = session.submit(longer, options(8), prefix=first.snapshot)
        session.run()
        assert 140 <= third.reused <= 150
        assert third.tokens == runtime.generate([parted], 8, eos_token_ids=())[0]
        assert again.tokens == second.tokens


@pytest.mark.parametrize("drafts", [0, 2])
def test_a_prompt_of_several_requests_is_run_once(
    runtime: Runtime, source: list[int], drafts: int
) -> None:
    """More of them than rows, beside others; the first ends with its first token, one is cancelled,
    and the last has another prompt after all.
    """
    shared = SharedPrompt(7)
    prompts = [*[source[:300]] * 6, [*source[:299], 7]]
    wanted = [options(1 if i == 0 else 12, temperature=0.9, seed=i) for i in range(7)]
    alone = runtime.session(max_batch=1)
    expected = [alone.submit(*pair) for pair in zip(prompts, wanted, strict=True)]
    alone.run()
    session = runtime.session(max_batch=3, prefill_chunk=128, drafts=drafts)
    other = session.submit(source[500:520], options(30))
    requests = [
        session.submit(prompt, replace(x, shared=shared))
        for prompt, x in zip(prompts, wanted, strict=True)
    ]
    while shared.snapshot is None:
        session.step()
    requests[3].cancel()
    session.run()
    assert [x.tokens for x in requests] == [
        x.tokens if i != 3 else [] for i, x in enumerate(expected)
    ]
    again = 2 if drafts else 0  # which the prediction layer is to see with another follower
    reused = 300 - again
    assert [x.reused for x in requests] == [0, reused, reused, 0, reused, reused, 299 - again // 2]
    run = sum(300 - x.reused for x in requests if x is not requests[3])
    assert session.statistics.prompt_tokens == 20 + run
    assert other.tokens == runtime.generate([source[500:520]], 30, eos_token_ids=())[0]


def test_where_the_first_does_not_run_the_prompt_the_next_does(
    runtime: Runtime, source: list[int]
) -> None:
    prompt, shared = source[:300], SharedPrompt(4)
    session = runtime.session(prefill_chunk=128)
    wanted = [replace(options(8), shared=shared, prompt_logprobs=x) for x in (None, None, 0, None)]
    requests = [session.submit(prompt, x) for x in wanted]
    stray = session.submit([*source[:299], 7], wanted[3])
    session.step()
    requests[0].cancel()
    while shared.left > 0:
        session.step()
    assert shared.snapshot is None  # nobody needs it any more
    session.run()
    assert [x.tokens for x in requests[1:]] == [
        runtime.generate([prompt], 8, eos_token_ids=())[0]
    ] * 3
    assert [x.reused for x in requests] == [0, 0, 0, 300]
    assert len(requests[2].prompt_logprobs) == 299
    assert stray.tokens == runtime.generate([stray.prompt], 8, eos_token_ids=())[0]
    assert stray.reused == 0  # its states were let go


def test_snapshot_of_a_running_request(runtime: Runtime, source: list[int]) -> None:
    session = runtime.session()
    request = session.submit(source[:30], options(20))
    with pytest.raises(GlmTrtError, match="decoding"):
        session.snapshot(request)
    while len(request.tokens) < 8:
        session.step()
    snapshot = session.snapshot(request)
    session.run()
    prompt = source[:30] + request.tokens[:8]
    other = runtime.session()  # a snapshot is of no session
    resumed = other.submit(prompt, options(12), prefix=snapshot)
    other.run()
    assert resumed.reused == len(prompt) - 1
    assert request.tokens == request.tokens[:8] + resumed.tokens


def test_streaming_text_and_stops(runtime: Runtime) -> None:
    assert runtime.text is not None
    ids = runtime.text.encode("def main():")
    whole = runtime.text.decode(runtime.generate([ids], 40, eos_token_ids=())[0])
    stop = whole[30:36]
    session, events = runtime.session(), list[Token]()
    request = session.submit(
        ids, GenerateOptions(40, stop=("never said", stop), eos_token_ids=()),
        on_token=events.append,
    )  # fmt: skip
    session.run()
    assert request.text == whole[: whole.index(stop)]
    assert request.finish_reason == "stop" == events[-1].finish_reason
    assert "".join(event.text or "" for event in events) == request.text
    assert [event.token_id for event in events] == request.tokens
    assert all(event.finish_reason is None for event in events[:-1])
    request = session.submit(ids, GenerateOptions(40, eos_token_ids=()))
    session.run()
    assert request.text == whole and request.finish_reason == "length"


def test_log_probabilities(runtime: Runtime, source: list[int]) -> None:
    session = runtime.session(drafts=1)
    wanted = GenerateOptions(6, eos_token_ids=(), logprobs=3)
    request = session.submit(source[:20], wanted)
    session.run()
    logits = torch.from_numpy(runtime.forward([source[:20] + request.tokens])).double()
    expected = logits[0, 19:-1].log_softmax(-1)
    found = expected.gather(-1, torch.tensor(request.tokens)[:, None])[:, 0]
    assert request.logprobs == pytest.approx(found.tolist(), abs=1e-4)
    for row, best in zip(expected, request.top_logprobs, strict=True):
        assert [token for token, _ in best] == row.topk(3).indices.tolist()


def test_what_a_callback_raises_ends_its_request_alone(runtime: Runtime, source: list[int]) -> None:
    class Stopped(Exception):
        pass

    def refuse(token: Token) -> None:
        if len(bad.tokens) == 3:
            raise Stopped

    session = runtime.session()
    good = session.submit(source[:10], options(10))
    bad = session.submit(source[:40], options(10), on_token=refuse)
    with pytest.raises(Stopped):
        session.run()
    session.run()
    assert bad.finish_reason == "cancelled" and len(bad.tokens) == 3
    assert good.tokens == runtime.generate([source[:10]], 10, eos_token_ids=())[0]


@pytest.mark.parametrize("place", [0, 3])
def test_logits_that_are_none_end_their_request_alone(
    runtime: Runtime, source: list[int], monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """At its first token, and at a later one."""
    session = runtime.session()
    good = session.submit(source[:10], options(8))
    bad = session.submit(source[:40], options(8))
    chosen = Request.choose

    def choose(request: Request, logits: Any, drafts: Sequence[int] = ()) -> int:
        if request is bad and len(request.tokens) == place:
            logits = np.full_like(logits, np.nan)
        return chosen(request, logits, drafts)

    monkeypatch.setattr(Request, "choose", choose)
    with pytest.raises(GlmTrtError, match="NaN at token 0"):
        session.run()
    session.run()
    assert bad.finish_reason == "cancelled" and len(bad.tokens) == place
    assert good.tokens == runtime.generate([source[:10]], 8, eos_token_ids=())[0]


def test_ends(tmp_path: Path) -> None:
    save(make_oracle(), tmp_path / "c")
    export_checkpoint(
        tmp_path / "c", tmp_path / "b", ExportOptions(dtypes=("float32",), max_seq_len=20)
    )
    with glm_trt.load(tmp_path / "b") as runtime:
        session = runtime.session()
        full = session.submit([5] * 17, options(50))
        none = session.submit([5], options(0))
        session.run()
        assert len(full.tokens) == 4 and full.finish_reason == "length"
        assert none.tokens == [] and none.finish_reason == "length" and none.text is None
        longest = session.submit([5] * 20, options(50))
        single = session.submit([7, 8, 9], options(1))
        other = session.submit([7, 8, 9], options(3))
        session.run()
        assert len(longest.tokens) == 1 and longest.finish_reason == "length"
        assert single.tokens == other.tokens[:1] and len(other.tokens) == 3
        unrun = session.submit([5], options(5))
        unrun.cancel()
        assert not session.step() and unrun.finish_reason == "cancelled"
        with pytest.raises(GlmTrtError, match="prompt of 21 tokens"):
            session.submit([5] * 21)
        with pytest.raises(GlmTrtError, match="stop strings need a tokenizer"):
            session.submit([5], GenerateOptions(stop=("x",)))
        with pytest.raises(GlmTrtError, match="no prediction layer"):
            runtime.session(drafts=1)
        for wrong in ({"max_batch": 0}, {"prefill_chunk": 0}, {"drafts": -1}):
            with pytest.raises(GlmTrtError, match=next(iter(wrong))):
                runtime.session(**wrong)
        for ids in ([], [97], [-1], [1.5], [[1]]):
            with pytest.raises(GlmTrtError, match="input_ids"):
                session.submit(ids)
        with pytest.raises(GlmTrtError, match="max_new_tokens"):
            GenerateOptions(-1)
