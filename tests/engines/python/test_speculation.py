"""Speculative decoding: the tokens of plain decoding, in fewer passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glm_trt
from glm_trt.engines.python.request import GenerateOptions
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.python.session import Session
from glm_trt.engines.python.speculation import Drafts
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.generate import CheckpointOptions, make_checkpoint


def prompts(runtime: Runtime, count: int) -> list[list[int]]:
    """Pieces of Python source of many lengths, some beyond the indexer's reach."""
    assert runtime.text is not None
    ids = runtime.text.encode(Path(torch.__file__).read_text())
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(ids) - 300, count)
    return [ids[a : a + n] for a, n in zip(starts, rng.integers(1, 200, count), strict=True)]


def run(session: Session, texts: list[list[int]], options: GenerateOptions) -> list[list[int]]:
    requests = [session.submit(ids, options) for ids in texts]
    session.run()
    return [request.tokens for request in requests]


def test_fifty_prompts_get_the_same_tokens(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = prompts(runtime, 50)
    options = GenerateOptions(24, eos_token_ids=())
    expected = run(runtime.session(max_batch=8), texts, options)
    for drafts in (1, 3):
        session = runtime.session(max_batch=8, drafts=drafts)
        assert run(session, texts, options) == expected, drafts
        found = session.statistics
        assert found.acceptance is not None and found.acceptance > 0.4
        assert found.new_tokens == 50 * 24
        with capsys.disabled():
            print(f"\n{drafts} draft(s): {found.acceptance:.1%} accepted, by place "
                  f"{found.accepted} of {found.drafted}")  # fmt: skip


@pytest.mark.parametrize("sampling", [
    Sampling(0.8, seed=3), Sampling(1.0, top_k=20, top_p=0.9, repetition_penalty=1.1, seed=4),
])  # fmt: skip
def test_sampled_tokens_are_the_same_too(runtime: Runtime, sampling: Sampling) -> None:
    texts = prompts(runtime, 10)
    options = GenerateOptions(24, sampling, eos_token_ids=())
    expected = run(runtime.session(max_batch=4), texts, options)
    session = runtime.session(max_batch=4, drafts=2)
    assert run(session, texts, options) == expected
    assert session.statistics.acceptance is not None and session.statistics.acceptance > 0.1


@pytest.mark.parametrize("method", ["predict", "predict_further"])
def test_drafts_of_logits_that_are_none(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The row that has no logits gets its tokens plainly, the others theirs with drafts."""
    texts = prompts(runtime, 3)
    options = GenerateOptions(12, eos_token_ids=())
    expected = run(runtime.session(), texts, options)
    session = runtime.session(max_batch=3, drafts=2)
    batch, run_of_rows = session._batch, []
    given, step = getattr(batch, method), batch.step

    def without_the_second(*arguments: Any) -> Any:
        logits = given(*arguments)
        logits[1:2] = np.nan
        return logits

    def recorded(ids: Any, lengths: Any = None, **options: Any) -> Any:
        if len(ids) == 3:
            run_of_rows.append(lengths.tolist())
        return step(ids, lengths, **options)

    monkeypatch.setattr(batch, method, without_the_second)
    monkeypatch.setattr(batch, "step", recorded)
    assert run(session, texts, options) == expected
    # The first pass of three still has the drafts that the second row got when it was alone.
    first, second, third = zip(*run_of_rows[1:], strict=True)
    assert max(first) == max(third) == 3
    assert max(second) == (1 if method == "predict" else 2)


def test_ends_come_where_they_come_plainly(runtime: Runtime) -> None:
    """Within drafts: an end token, a stop string, the last token, the longest sequence."""
    assert runtime.text is not None
    texts = prompts(runtime, 6)
    plain = run(runtime.session(), texts, GenerateOptions(30, eos_token_ids=()))
    eos = plain[0][11]
    stop = runtime.text.decode(plain[1])[20:23]
    for options in (
        GenerateOptions(30, eos_token_ids=(eos,)),
        GenerateOptions(30, eos_token_ids=(), stop=(stop,)),
        *(GenerateOptions(n, eos_token_ids=()) for n in (1, 2, 3, 4)),
    ):
        results = []
        for drafts in (0, 3):
            session = runtime.session(drafts=drafts)
            requests = [session.submit(ids, options) for ids in texts]
            session.run()
            results.append([(x.tokens, x.text, x.finish_reason) for x in requests])
        assert results[0] == results[1]
    long = (texts[0] * 300)[:4090]
    results = [run(runtime.session(drafts=n), [long], GenerateOptions(50, eos_token_ids=()))
               for n in (0, 3)]  # fmt: skip
    assert results[0] == results[1] and len(results[0][0]) == 7


def test_wrong_drafts_cost_passes_only(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the drafts' quality depends on the prediction layer."""
    texts = prompts(runtime, 5)
    options = GenerateOptions(20, eos_token_ids=())
    expected = run(runtime.session(), texts, options)
    draft = Drafts._draft
    rng = np.random.default_rng(0)

    def wrong(self: Drafts, requests: Any, logits: Any) -> None:
        draft(self, requests, logits)
        for drafts in self._drafts.values():
            drafts[rng.integers(0, 2)] = int(rng.integers(0, 2048))

    monkeypatch.setattr(Drafts, "_draft", wrong)
    session = runtime.session(drafts=2)
    assert run(session, texts, options) == expected
    assert session.statistics.acceptance is not None and session.statistics.acceptance < 0.5


def test_states_that_sum_up_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear layers cannot forget a token: what a pass read must be there once more."""
    make_checkpoint(CheckpointOptions("glm-5.1-hybrid", "tiny"), tmp_path / "c")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(dtypes=("float32",)))
    with glm_trt.load(tmp_path / "b") as hybrid:
        rng = np.random.default_rng(1)
        texts = [rng.integers(1, 500, n).tolist() for n in (3, 40, 1, 90, 7)]
        options = GenerateOptions(15, eos_token_ids=())
        expected = run(hybrid.session(max_batch=3), texts, options)
        assert run(hybrid.session(max_batch=3, drafts=2), texts, options) == expected
        # Drafts that are right now and then, so that rows keep different numbers of tokens.
        draft = Drafts._draft

        def known(self: Drafts, requests: Any, logits: Any) -> None:
            draft(self, requests, logits)
            for request in requests:
                tokens, count = expected[texts.index(request.prompt)], len(request.tokens)
                some = rng.integers(0, 3)
                self._drafts[request][:some] = tokens[count : count + some]

        monkeypatch.setattr(Drafts, "_draft", known)
        session = hybrid.session(max_batch=3, drafts=2)
        assert run(session, texts, options) == expected
        assert session.statistics.acceptance is not None
        assert 0.2 < session.statistics.acceptance < 0.9


def test_right_drafts_are_accepted(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, where drafts are what will come: the fewest passes there can be."""
    texts = prompts(runtime, 1)
    options = GenerateOptions(25, eos_token_ids=())
    (expected,) = run(runtime.session(), texts, options)

    def known(self: Drafts, requests: Any, logits: Any) -> None:
        for request in requests:
            count = len(request.tokens)
            self._drafts[request] = expected[count : count + self.count]

    monkeypatch.setattr(Drafts, "_draft", known)
    session = runtime.session(drafts=3)
    assert run(session, texts, options) == [expected]
    assert session.statistics.acceptance == 1 and session.statistics.passes == 6


def test_each_draft_is_made_behind_the_one_before() -> None:
    """Of a prediction layer that foretells the next number."""

    def logits(ids: Any) -> Any:
        return np.eye(20, dtype=np.float32)[np.asarray(ids) + 1]

    class Counting:
        def predict(self, following: Any, lengths: Any) -> Any:
            return logits(following[:, -1:])

        def predict_further(self, ids: Any) -> Any:
            return logits(ids)

    class Counted:
        done = False

        def __init__(self, token: int) -> None:
            self.tokens = [token]

        def choose(self, logits: Any, drafts: Any = ()) -> int:
            return int(logits.argmax())

    drafts: Any = Drafts(Counting(), 4)  # type: ignore[arg-type]
    requests = [Counted(3), Counted(11)]
    for request in requests:
        drafts.admit(request, np.array([[0, *request.tokens]]))
    ids, lengths = drafts.proposed(requests, [10, 3])
    assert ids.tolist() == [[3, 4, 5, 6, 7], [11, 12, 13, 0, 0]] and lengths.tolist() == [5, 3]
