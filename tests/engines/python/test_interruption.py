"""Whatever breaks a pass off, every request gets its tokens, those that it gets alone, and once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hybrids import make_hybrid, save_hybrid
from tensorrt_double import MAX_TOKENS, HostDevice, open_double

import glm_trt
from glm_trt import run_command
from glm_trt.engines.python.onnxruntime_batch import _LayerStates
from glm_trt.engines.python.request import (
    CANCELLED,
    GenerateOptions,
    Request,
    SharedPrompt,
    Token,
)
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.python.session import Session
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.generate import CheckpointOptions, make_checkpoint
from glm_trt.model.errors import GlmTrtError
from glm_trt.run_command import RunOptions, run_chat

PLACE = str(Path(glm_trt.__file__).resolve().parent / "engines" / "python")
# A caller's last line and the first of who catches are one to a signal: Python looks for it where
# a call begins or ends. `deliver` is what ends a request on purpose.
UNTRACED = {"step", "deliver"}
SEEDS = [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 17))]


class Stopped(BaseException):
    """Not an `Exception`."""


@pytest.fixture(scope="module", params=["sparse", "hybrid", "hybrid on a device"])
def runtime(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Runtime]:
    """With a prediction layer; with states by turns; and with rows that are no arrays."""
    if request.param == "sparse":
        with glm_trt.load(tiny_bundle) as found:
            yield found
        return
    place: Path = tmp_path_factory.mktemp("hybrid")
    make_checkpoint(CheckpointOptions("glm-5.1-hybrid", "tiny"), place / "c")
    export_checkpoint(place / "c", place / "b", ExportOptions(("float32",), max_seq_len=150))
    if request.param == "hybrid":
        with glm_trt.load(place / "b") as found:
            yield found
    else:
        with Runtime(open_double(Bundle.open(place / "b"), HostDevice())) as found:
            yield found


class Trial:
    """Requests of a session, one of which goes on from another's states, and three of which have
    the same prompt; all drawn from a seed.
    """

    def __init__(self, runtime: Runtime, seed: int) -> None:
        self.runtime, rng = runtime, np.random.default_rng(seed)
        self.rng = rng
        vocabulary = min(runtime.bundle.config.vocab_size, 500)
        sampling = [Sampling(), Sampling(0.8, top_k=20, seed=seed)][seed % 2]
        chunk = int(rng.integers(4, MAX_TOKENS))
        rows, drafts = int(rng.integers(2, 5)), int(rng.integers(0, 4))
        self.options = [
            GenerateOptions(int(n), sampling, eos_token_ids=(), logprobs=1, keep=True)
            for n in rng.integers(3, 12, 6)
        ]
        self.prompts = [rng.integers(1, vocabulary, n).tolist() for n in rng.integers(1, 40, 6)]
        self.prompts[3:5] = [self.prompts[2]] * 2
        whole = runtime.session(max_batch=1)
        alone = [whole.submit(x, o) for x, o in zip(self.prompts, self.options, strict=True)]
        whole.run()
        self.expected = [request.tokens for request in alone]
        shared = SharedPrompt(3)
        self.options[2:5] = [replace(x, shared=shared) for x in self.options[2:5]]
        self.prompts.append([*alone[0].sequence, 7])
        self.options.append(self.options[1])
        self.expected.append(after(runtime, alone[0], self.options[1]).tokens)
        self.session = runtime.session(max_batch=rows, prefill_chunk=chunk, drafts=drafts)
        # Made with a prediction layer's states where there are drafts.
        self.first = first = self.session.submit(self.prompts[0], self.options[0])
        self.session.run()
        self.delivered: list[list[int]] = [[] for _ in self.prompts]
        self.requests = [
            self.session.submit(prompt, options, on_token=self.receiver(i), prefix=first.snapshot)
            for i, (prompt, options) in enumerate(zip(self.prompts, self.options, strict=True))
        ]

    def receiver(self, number: int) -> Any:
        return lambda token: self.receive(number, token)

    def receive(self, number: int, token: Token) -> None:
        self.delivered[number].append(token.token_id)

    def check(self, but: int | None = None) -> None:
        """Everything came, of all requests but one that was ended."""
        for i, request in enumerate(self.requests):
            assert self.delivered[i] == request.tokens
            assert len(request.logprobs) == len(request.tokens)
            if i == but:
                assert request.finish_reason == CANCELLED
                assert request.tokens == self.expected[i][: len(request.tokens)]
            else:
                assert request.tokens == self.expected[i]
                if (text := self.runtime.text) is not None:
                    assert request.text == text.decode(request.tokens)
        counted = self.session.statistics
        assert counted.new_tokens == sum(map(len, [self.first.tokens, *self.delivered]))
        assert sum(counted.accepted) < counted.new_tokens
        # The states that they leave are right too.
        for request in self.requests[:2]:
            alone = self.runtime.generate([[*request.sequence, 7]], 3, eos_token_ids=())
            found = after(self.runtime, request, GenerateOptions(3, eos_token_ids=()))
            assert found.tokens == alone[0]


def after(runtime: Runtime, request: Request, options: GenerateOptions) -> Request:
    """What goes on from the states that `request` left."""
    session = runtime.session(max_batch=1)
    snapshot = request.snapshot
    found = session.submit([*request.sequence, 7], options, prefix=snapshot)
    session.run()
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_a_callback_that_raises_ends_its_own_request(runtime: Runtime, seed: int) -> None:
    trial = Trial(runtime, seed)
    kinds: list[type[BaseException]] = [KeyboardInterrupt, SystemExit, Stopped, ValueError]
    kind = kinds[seed % len(kinds)]
    number = int(trial.rng.integers(len(trial.requests)))
    last = int(trial.rng.integers(1, trial.requests[number].options.max_new_tokens))
    receive = trial.receive

    def raising(of: int, token: Token) -> None:
        receive(of, token)
        if of == number and len(trial.delivered[of]) == last:
            raise kind("from on_token")

    trial.receive = raising  # type: ignore[method-assign]
    with pytest.raises(kind, match="from on_token"):
        trial.session.run()
    trial.session.run()
    assert len(trial.requests[number].tokens) == last
    trial.check(but=number)


class Interrupt:
    """Raises KeyboardInterrupt before the given line that the runtime runs."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PLACE) or code.co_name in UNTRACED:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def interrupted(session: Session, rng: np.random.Generator) -> int:
    """Run to the end, most steps broken off once or more, ever later; how many times."""
    count, lines = 0, 50
    while True:
        tracer = Interrupt(int(rng.integers(1, lines)))
        sys.settrace(tracer)
        try:
            more = session.step()
        except KeyboardInterrupt:
            count += 1
            lines *= 2
            continue
        finally:
            sys.settrace(None)
        if not more:
            return count
        lines = max(lines // 4, 50)


def test_a_recording_that_is_broken_off_is_ended(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of one token is recorded; while it is, nothing that the device is asked is done."""
    device = getattr(runtime.backend, "device", None)
    if device is None:
        pytest.skip("nothing is recorded without a device")
    assert isinstance(device, HostDevice)
    expected = runtime.generate([[5, 6, 7]], 6, eos_token_ids=())
    session, queue, breaks = runtime.session(), device.queue, [True]

    def queue_or_break(work: Any) -> None:
        if device._recording and breaks:
            breaks.pop()
            raise KeyboardInterrupt
        queue(work)

    monkeypatch.setattr(device, "queue", queue_or_break)
    request = session.submit([5, 6, 7], GenerateOptions(6, eos_token_ids=()))
    with pytest.raises(KeyboardInterrupt):
        session.run()
    session.run()
    assert request.tokens == expected[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pass_that_is_broken_off_is_taken_back(runtime: Runtime, seed: int) -> None:
    trial = Trial(runtime, seed)
    assert interrupted(trial.session, trial.rng) > 5
    trial.check()


def test_at_the_edges_of_a_pass(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and behind what makes it count, and what takes it back."""
    trial = Trial(runtime, 1)
    session, raised = trial.session, 0

    def at_the_edges(of: Any, name: str) -> None:
        whole = getattr(of, name)

        def raising(*arguments: Any) -> None:
            nonlocal raised
            when = int(trial.rng.integers(4))
            raised += when < 2
            if when == 0:
                raise KeyboardInterrupt
            whole(*arguments)
            if when == 1:
                raise KeyboardInterrupt

        monkeypatch.setattr(of, name, raising)

    at_the_edges(session, "_commit")
    at_the_edges(session._batch, "return_to")
    while True:
        try:
            if not session.step():
                break
        except KeyboardInterrupt:
            pass
    assert raised > 30
    monkeypatch.undo()
    trial.check()


def test_growing_states_may_be_interrupted(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.random.default_rng(0).integers(0, 2048, (2, 140))
    with glm_trt.load(tiny_bundle) as runtime:
        whole = runtime.backend.batch(2, 140).step(ids)
        batch = runtime.backend.batch(2)
        batch.step(ids[:, :100])
        standing, grow, calls = batch.standing(), _LayerStates.grow, []

        def raising(states: _LayerStates, capacity: int) -> None:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            grow(states, capacity)

        monkeypatch.setattr(_LayerStates, "grow", raising)
        with pytest.raises(KeyboardInterrupt):
            batch.step(ids[:, 100:])
        batch.return_to(standing)
        batch.step(ids[:, 100:110])
        found = batch.step(ids[:, 110:])
    assert len(calls) > 3
    assert np.linalg.norm(found - whole) < 1e-5 * np.linalg.norm(whole)


def test_in_a_callback(tmp_path: Path) -> None:
    """Its own snapshot, another's end, another request; but no step within a step."""
    save_hybrid(make_hybrid("linear_first"), tmp_path / "c")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(("float32",)))
    options = GenerateOptions(9, eos_token_ids=())
    seen: list[Any] = []
    with glm_trt.load(tmp_path / "b") as runtime:
        session = runtime.session(max_batch=2)

        def on_token(_: Token) -> None:
            seen.append(session.snapshot(first))
            if len(first.tokens) == 2:
                seen.append(session.submit([5, 6], options))
            with pytest.raises(GlmTrtError, match="step: called while the session runs a pass"):
                session.step()

        first = session.submit([1, 2, 3], options, on_token=on_token)
        session.run()
        snapshots = [x for x in seen if not isinstance(x, Request)]
        (late,) = (x for x in seen if isinstance(x, Request))
        assert late.tokens == runtime.generate([[5, 6]], 9, eos_token_ids=())[0]
        assert [len(x.tokens) for x in snapshots] == [0, *range(3, 11)]
        for snapshot in snapshots[1:]:
            assert list(snapshot.tokens) == first.sequence[: len(snapshot.tokens)]
            again = session.submit([*snapshot.tokens, 9, 9], options, prefix=snapshot)
            session.run()
            assert again.reused == len(snapshot.tokens)
            assert [again.tokens] == runtime.generate([again.prompt], 9, eos_token_ids=())


@pytest.mark.parametrize("drafts", [0, 3])
def test_a_conversation_goes_on_after_an_interrupted_answer(
    tiny_bundle: Path, drafts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a token is printed, or in the midst of a pass."""
    lines = ["import os\n", "def f(x):\n", "class A:\n"]
    answers: list[Request] = []
    submit = run_command._submit
    written = 0

    def remembered(*arguments: Any, **options: Any) -> Request:
        nonlocal written
        written = 0
        answers.append(submit(*arguments, **options))
        return answers[-1]

    def write(_: str) -> None:
        nonlocal written
        written += 1
        if (len(answers), written) in ((1, 5), (2, 2)):
            raise KeyboardInterrupt

    monkeypatch.setattr(run_command, "turns", lambda *_, **__: iter(lines))
    monkeypatch.setattr(run_command, "_submit", remembered)
    monkeypatch.setattr(run_command, "_write", write)
    wanted = RunOptions(None, None, True, None, 12, Sampling(), (), None, drafts, False)
    with glm_trt.load(tiny_bundle) as runtime:
        run_chat(runtime, wanted)
        assert [x.finish_reason == CANCELLED for x in answers] == [True, True, False]
        assert answers[1].reused and answers[2].reused
        for answer in answers:
            alone = runtime.generate([answer.prompt], 12)[0]
            assert answer.tokens == alone[: len(answer.tokens)]
        assert len(answers[0].tokens) >= 5 and len(answers[1].tokens) >= 2
