"""The thread that owns the session: requests come from any other, tokens go back as events."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from glm_trt.engines.python.request import GenerateOptions, Request, Token
from glm_trt.engines.python.session import Session
from glm_trt.engines.serve.limits import Limits
from glm_trt.engines.serve.prefix_cache import PrefixCache
from glm_trt.model.errors import GlmTrtError

LOG = logging.getLogger(__name__)
ENDING = "the server is shutting down"
TRIES = 2  # of a pass that fails for no request's sake; as often again without those requests


class Refused(GlmTrtError):
    """A request that is not taken on; `retry_seconds` is when it may be tried again."""

    def __init__(self, text: str, status: int, retry_seconds: float) -> None:
        super().__init__(text)
        self.status, self.retry_seconds = status, retry_seconds


@dataclass(frozen=True)
class Ended:
    """The last event of a job.

    Attributes
    ----------
    job : of which nothing more comes.
    error : what ended it, if anything did: `Refused` if it waited too long.
    """

    job: Job
    error: BaseException | None

    @property
    def request(self) -> Request | None:
        """With all that came; None if it never got a row."""
        return self.job.request


@dataclass(eq=False)
class Job:
    """One sequence that somebody waits for. Made by `EngineLoop.submit`.

    Attributes
    ----------
    listener : called in the engine's thread with each `Token`, then with one `Ended`.
    submitted, ended : seconds of `time.monotonic`; None until then.
    request : None until it has a row.
    """

    prompt: Sequence[int]
    options: GenerateOptions
    listener: Callable[[Token | Ended], None]
    submitted: float
    ended: float | None = None
    request: Request | None = None
    _cancelled: bool = field(default=False, repr=False)

    def cancel(self) -> None:
        """End it before the next pass; from any thread, and in the listener."""
        self._cancelled = True
        if self.request is not None:
            self.request.cancel()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled


class EngineLoop:
    """Runs a session's passes in a thread of its own, from `start` until `close`.

    Requests wait here, not in the session, until there is a row for them: in the order in which
    they came, no longer than the limits say.

    Parameters
    ----------
    session : made for this alone; without a text, as listeners decode.
    prefix_bytes : of states that are kept for later prompts.
    """

    def __init__(self, session: Session, limits: Limits, prefix_bytes: int = 0) -> None:
        self.session, self.limits = session, limits
        self.prefixes = PrefixCache(prefix_bytes, session.drafts > 0)
        self._condition = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._closing = self._has_failed = False
        self._give_up = False  # what is under way is cancelled
        self._failures = 0
        self.failed_passes = 0
        self._thread = threading.Thread(target=self._run, name="glm-trt engine", daemon=True)

    def start(self) -> None:
        """Begin to run passes."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests with one."""
        return len(self._active)

    @property
    def status(self) -> Literal["ok", "starting", "draining", "failed"]:
        """Whether requests are taken on, and why not."""
        if self._has_failed:
            return "failed"
        if self._closing:
            return "draining"
        return "ok" if self._thread.is_alive() else "starting"

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken on."""
        return self.status == "ok"

    def submit(
        self,
        prompts: Sequence[Sequence[int]],
        options: Sequence[GenerateOptions],
        listeners: Sequence[Callable[[Token | Ended], None]],
    ) -> list[Job]:
        """Take on the sequences of one request, all or none; from any thread.

        Raises
        ------
        Refused
            If too many wait, or the server is to end.
        GlmTrtError
            If a prompt is empty, too long, or not made of the model's tokens.
        """
        for prompt, wanted in zip(prompts, options, strict=True):
            self.session.check(prompt, wanted)
        now = time.monotonic()
        jobs = [Job(*x, now) for x in zip(prompts, options, listeners, strict=True)]
        with self._condition:
            if not self.is_ready:
                raise Refused(ENDING, 503, self.limits.grace_seconds)
            # As soon as the pass under way ends, so many of those that wait have rows.
            free = self.session.max_batch - len(self._active)
            waiting = max(len(self._waiting) - free, 0)
            if len(self._waiting) + len(jobs) > self.limits.waiting + free:
                raise Refused(
                    f"too many requests: {waiting} wait already, at most {self.limits.waiting} may",
                    429, 1.0,
                )  # fmt: skip
            self._waiting.extend(jobs)
            self._condition.notify()
        return jobs

    def close(self, grace_seconds: float | None = None) -> None:
        """Take on no more, finish what was begun within the grace period, cancel the rest."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        grace = self.limits.grace_seconds if grace_seconds is None else grace_seconds
        self._thread.join(grace)
        with self._condition:
            self._give_up = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            self._admit()
            if self._active:
                self._step()
                self._end_done()

    def _wait(self) -> bool:
        """Until there is something to do; whether there is."""
        with self._condition:
            while not (self._waiting or self._active):
                if self._closing:
                    return False
                self._condition.wait()
            gives_up = self._give_up
            left: list[Job] = []
            if gives_up:
                left, self._waiting = [*self._waiting], deque()
        for job in left:
            self._end(job, Refused(ENDING, 503, self.limits.grace_seconds))
        if gives_up:
            for job in self._active:
                job.cancel()
        return True

    def _admit(self) -> None:
        """Give rows to those that wait; end those that have waited too long, or left."""
        now = time.monotonic()
        with self._condition:
            waiting, self._waiting = self._waiting, deque()
            free = self.session.max_batch - len(self._active)
            left = [job for job in waiting if not job.cancelled]
            late = [x for x in left[free:] if now - x.submitted > self.limits.waiting_seconds]
            self._waiting.extend(x for x in left[free:] if x not in late)
        for job in waiting:
            if job.cancelled:
                self._end(job, None)
        for job in late:
            seconds = self.limits.waiting_seconds
            text = f"no row became free within {seconds:g} seconds"
            self._end(job, Refused(text, 503, seconds))
        for job in left[:free]:
            options = replace(job.options, keep=job.options.keep or self.prefixes.capacity > 0)
            prefix = self.prefixes.find(job.prompt)
            job.request = self.session.submit(
                job.prompt, options, on_token=job.listener, prefix=prefix
            )
            if job.cancelled:  # in the meantime
                job.request.cancel()
            self._active.append(job)

    def _step(self) -> None:
        try:
            self.session.step()
        except BaseException as error:
            if any(job.request is not None and job.request.error is error for job in self._active):
                return  # of one request, which has ended
            self._failures += 1
            self.failed_passes += 1
            LOG.exception("a pass failed")
            if self._failures >= TRIES:  # the first time it was taken back, and is run anew
                for job in self._active:
                    if job.request is not None:
                        job.request.fail(error)
            if self._failures >= 2 * TRIES:
                self._break_down(error)
        else:
            self._failures = 0

    def _break_down(self, error: BaseException) -> None:
        """Nothing can be run any more."""
        with self._condition:
            self._closing = self._has_failed = True
            jobs = [*self._active, *self._waiting]
            self._active, self._waiting = [], deque()
        for job in jobs:
            self._end(job, error)

    def _end_done(self) -> None:
        """Tell those whose request has ended; the session has seen that it has."""
        done = [x for x in self._active if x.request is not None and x.request.finish_reason]
        for job in done:
            self._active.remove(job)
            request = job.request
            if request is not None and request.snapshot is not None:
                if request.error is None:
                    self.prefixes.add(request.snapshot)
                request.snapshot = None
            self._end(job, None if request is None else request.error)

    @staticmethod
    def _end(job: Job, error: BaseException | None) -> None:
        job.ended = time.monotonic()
        try:
            job.listener(Ended(job, error))
        except Exception:
            LOG.exception("a listener failed")
