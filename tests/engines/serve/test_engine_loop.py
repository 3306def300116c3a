"""The engine's thread: what it takes on, what it refuses, and that it never gives a wrong token."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import pytest

from glm_trt.engines.python.request import GenerateOptions, Token
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.serve.engine_loop import Ended, EngineLoop, Job, Refused
from glm_trt.engines.serve.limits import Limits
from glm_trt.engines.serve.prefix_cache import PrefixCache, size_of
from glm_trt.model.errors import GlmTrtError


def options(count: int, **sampling: Any) -> GenerateOptions:
    return GenerateOptions(count, Sampling(**sampling), eos_token_ids=())


class Client:
    """Who waits for one job."""

    def __init__(self) -> None:
        self.events: queue.Queue[Token | Ended] = queue.Queue()
        self.tokens: list[int] = []

    def wait(self) -> Ended:
        while True:
            event = self.events.get(timeout=60)
            if isinstance(event, Ended):
                return event
            self.tokens.append(event.token_id)


def ask(engine: EngineLoop, prompt: list[int], wanted: GenerateOptions) -> tuple[Client, Job]:
    client = Client()
    return client, engine.submit([prompt], [wanted], [client.events.put])[0]


class Slow:
    """A step that waits for leave, so that what is under way stays so."""

    def __init__(self, engine: EngineLoop) -> None:
        self.leave, self.begun = threading.Semaphore(0), threading.Semaphore(0)
        self._step = engine.session.step
        engine.session.step = self  # type: ignore[method-assign]

    def __call__(self) -> bool:
        self.begun.release()
        assert self.leave.acquire(timeout=60)
        return self._step()

    def go(self) -> None:
        for _ in range(10_000):
            self.leave.release()


def test_tokens_are_those_of_a_request_alone(runtime: Runtime, source: list[int]) -> None:
    """From six threads, in turn with prompts that go on from each other, some left early."""
    engine = EngineLoop(runtime.session(max_batch=3, drafts=1), Limits(), 1 << 24)
    prompts = [source[: 20 + 11 * i] if i % 3 else source[9 * i : 9 * i + 30] for i in range(18)]
    wanted = [options(8, temperature=0.5 * (i % 2), seed=i) for i in range(18)]
    plain = runtime.session(max_batch=1)
    expected = [plain.submit(*pair) for pair in zip(prompts, wanted, strict=True)]
    plain.run()
    found: dict[int, tuple[Client, Ended]] = {}

    def clients(first: int) -> None:
        for i in range(first, 18, 6):
            client, job = ask(engine, prompts[i], wanted[i])
            if i % 5 == 4:
                client.tokens.append(client.events.get(timeout=60).token_id)  # type: ignore[union-attr]
                job.cancel()
            found[i] = client, client.wait()

    engine.start()
    threads = [threading.Thread(target=clients, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert len(found) == 18 and engine.running == engine.waiting == 0
    for i, (client, ended) in found.items():
        assert ended.error is None and ended.request is not None
        assert client.tokens == ended.request.tokens
        if i % 5 == 4:
            assert client.tokens == expected[i].tokens[: len(client.tokens)]
        else:
            assert client.tokens == expected[i].tokens, i
    assert sum(ended.request.reused for _, ended in found.values() if ended.request) > 50


def test_too_many_are_refused_at_once(runtime: Runtime, source: list[int]) -> None:
    engine = EngineLoop(runtime.session(max_batch=2), Limits(waiting=1))
    slow = Slow(engine)
    engine.start()
    clients = [ask(engine, source[:5], options(2))[0] for _ in range(3)]
    assert slow.begun.acquire(timeout=30)
    began = time.monotonic()
    with pytest.raises(Refused, match="too many requests: 1 wait already, at most 1 may") as found:
        ask(engine, source[:5], options(2))
    assert found.value.status == 429 and time.monotonic() - began < 1
    with pytest.raises(Refused):  # all or none
        engine.submit([source[:5]] * 2, [options(2)] * 2, [Client().events.put] * 2)
    slow.go()
    assert [client.wait().error for client in clients] == [None] * 3
    ask(engine, source[:5], options(2))[0].wait()
    engine.close()


def test_who_waits_too_long_is_refused(runtime: Runtime, source: list[int]) -> None:
    engine = EngineLoop(runtime.session(max_batch=1), Limits(waiting_seconds=0.05))
    slow = Slow(engine)
    engine.start()
    first, _ = ask(engine, source[:5], options(3))
    assert slow.begun.acquire(timeout=30)
    late, _ = ask(engine, source[:5], options(3))
    time.sleep(0.1)
    slow.go()
    error = late.wait().error
    assert isinstance(error, Refused) and error.status == 503
    assert str(error) == "no row became free within 0.05 seconds" and late.tokens == []
    assert first.wait().error is None and len(first.tokens) == 3
    engine.close()


def test_who_leaves_while_waiting_is_never_run(runtime: Runtime, source: list[int]) -> None:
    engine = EngineLoop(runtime.session(max_batch=1), Limits())
    slow = Slow(engine)
    engine.start()
    first, _ = ask(engine, source[:5], options(3))
    assert slow.begun.acquire(timeout=30)
    gone, job = ask(engine, source[:5], options(3))
    job.cancel()
    slow.go()
    ended = gone.wait()
    assert (ended.request, ended.error, gone.tokens) == (None, None, [])
    first.wait()
    engine.close()
    assert engine.session.statistics.new_tokens == 3


def test_an_end_within_the_grace_period_loses_nothing(runtime: Runtime, source: list[int]) -> None:
    engine = EngineLoop(runtime.session(max_batch=2), Limits())
    engine.start()
    clients = [ask(engine, source[i : i + 9], options(6))[0] for i in range(5)]
    engine.close(60)
    assert all(x.wait().error is None and len(x.tokens) == 6 for x in clients)
    with pytest.raises(Refused, match="shutting down") as found:
        ask(engine, source[:5], options(1))
    assert found.value.status == 503 and engine.status == "draining"


def test_the_end_of_the_grace_period_cancels(runtime: Runtime, source: list[int]) -> None:
    engine = EngineLoop(runtime.session(max_batch=1), Limits())
    engine.start()
    running, _ = ask(engine, source[:9], options(400))
    first = running.events.get(timeout=60)
    waiting, _ = ask(engine, source[:9], options(400))
    engine.close(0)
    ended = running.wait()
    assert isinstance(first, Token) and ended.request is not None
    assert ended.request.finish_reason == "cancelled" and len(running.tokens) < 399
    error = waiting.wait().error
    assert isinstance(error, Refused) and error.status == 503 and waiting.tokens == []


def test_a_listener_that_raises_ends_its_own_job(runtime: Runtime, source: list[int]) -> None:
    engine = EngineLoop(runtime.session(max_batch=2), Limits())
    engine.start()

    def broken(event: Token | Ended) -> None:
        raise ValueError("no reader")

    (job,) = engine.submit([source[:9]], [options(20)], [broken])
    good, _ = ask(engine, source[:9], options(20))
    assert good.wait().error is None and len(good.tokens) == 20
    assert job.request is not None and isinstance(job.request.error, ValueError)
    assert len(job.request.tokens) == 1 and engine.status == "ok"
    engine.close()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_pass_that_fails(
    runtime: Runtime, source: list[int], failures: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: it is run anew, and nobody knows. Again: its requests end, later ones are answered."""
    engine = EngineLoop(runtime.session(max_batch=2), Limits())
    left, batch = [failures], engine.session._batch
    step = batch.step

    def failing(*arguments: Any, **named: Any) -> Any:
        if engine.session.statistics.new_tokens >= 3 and left[0]:
            left[0] -= 1
            raise RuntimeError("device lost")
        return step(*arguments, **named)

    batch.step = failing  # type: ignore[method-assign]
    engine.start()
    client, _ = ask(engine, source[:9], options(8))
    error = client.wait().error
    assert "device lost" in caplog.text
    if failures == 1:
        assert error is None and len(client.tokens) == 8
    else:
        assert isinstance(error, RuntimeError) and len(client.tokens) == 3
    later, _ = ask(engine, source[:9], options(8))
    assert later.wait().error is None and len(later.tokens) == 8
    engine.close()


def test_an_engine_that_fails_for_good_says_so(
    runtime: Runtime, source: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EngineLoop(runtime.session(max_batch=1), Limits())

    def broken() -> bool:
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine.session, "step", broken)
    engine.start()
    clients = [ask(engine, source[:9], options(8))[0] for _ in range(2)]
    assert all(isinstance(client.wait().error, RuntimeError) for client in clients)
    assert engine.status == "failed"
    with pytest.raises(Refused):
        ask(engine, source[:9], options(8))
    engine.close(0)


@pytest.mark.parametrize(("prompt", "text"), [
    ([], "not empty"), ([9999999], "expected ids below"), ([1] * 5000, "prompt of 5000 tokens"),
])  # fmt: skip
def test_what_cannot_be_run_is_refused_before_it_waits(
    runtime: Runtime, prompt: list[int], text: str
) -> None:
    engine = EngineLoop(runtime.session(), Limits())
    engine.start()
    with pytest.raises(GlmTrtError, match=text):
        ask(engine, prompt, options(1))
    assert engine.waiting == 0
    engine.close()


def test_prefixes_are_kept_within_their_bytes(runtime: Runtime, source: list[int]) -> None:
    session = runtime.session(max_batch=1)

    def snapshot(tokens: list[int]) -> Any:
        request = session.submit(tokens, GenerateOptions(1, eos_token_ids=(), keep=True))
        session.run()
        return request.snapshot

    first, longer, other = snapshot(source[:20]), snapshot(source[:40]), snapshot(source[50:70])
    cache = PrefixCache(size_of(longer) + size_of(other), predict=False)
    cache.add(first)
    assert cache.find(source[:30]) is first and cache.find(source[100:130]) is None
    cache.add(longer)  # in its place
    assert cache.find(source[:30]) is longer and cache.held == size_of(longer)
    cache.add(other)
    assert cache.find(source[:30]) is longer  # used last
    cache.add(snapshot(source[80:100]))
    assert cache.find(source[50:75]) is None and cache.find(source[:30]) is longer
    small = PrefixCache(size_of(first) - 1, predict=False)
    small.add(first)
    assert small.held == 0 and small.find(source[:30]) is None
