"""Many clients of `glm-trt serve`, some of them rude: no wrong token, no growing memory.

Clients ask for pieces of Python source to be continued, greedily and sampled. They read streams to
the end, slowly, or leave; they send prompts that are too long and bodies that are no JSON. Each
answer is compared with that of the same request alone, from a session in this process. A token
that differs is a near tie where the two, as they were drawn, are nearer than MARGIN: sums of a
batch round in another order than those of one sequence. Answers are compared up to there.

At the end the server is sent SIGTERM while all of them go on asking: what was begun must be
answered whole, and the server must end by itself.

Exit codes: 0 all is well, 1 a wrong token, a lost answer, an unexpected status, memory that grew.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import torch

import glm_trt
from glm_trt.engines.python.request import GenerateOptions
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling, gumbel
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "data" / "glm-5.1-tiny"
BUNDLE = ROOT / "build" / "bench" / "serving-soak"
MARGIN = 1e-3  # of logits over the temperature, which are some tens
GROWTH = 0.02
# How often a client does what.
WAYS = {"stream": 60, "whole": 14, "leave": 10, "slow": 6, "too long": 5, "no JSON": 5}


@dataclass(frozen=True)
class Question:
    """A request, and the tokens that it gets alone."""

    prompt: list[int]
    sampling: Sampling
    count: int
    expected: list[int]

    def body(self, stream: bool) -> dict[str, Any]:
        """As JSON; with log-probabilities, as these name the tokens."""
        return {
            "model": "glm-5.1", "prompt": self.prompt, "max_tokens": self.count,
            "temperature": self.sampling.temperature, "seed": self.sampling.seed,
            "ignore_eos": True, "logprobs": 0, "stream": stream,
        }  # fmt: skip


@dataclass
class Account:
    """What happened."""

    tokens: int = 0
    near_ties: int = 0
    wrong: list[str] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    terminated: float = math.inf  # when the server was told to end
    finished_after: int = 0  # answers that were asked for before that, and ended whole after it
    lock: threading.Lock = field(default_factory=threading.Lock)


def questions(runtime: Runtime, count: int) -> list[Question]:
    """Different ones, each run alone."""
    assert runtime.text is not None
    source, rng = runtime.text.encode(Path(torch.__file__).read_text()), random.Random(0)
    found = []
    for i in range(count):
        length, new = rng.choice((3, 20, 80, 300)), rng.randrange(4, 40)
        begin = rng.randrange(len(source) - length)
        prompt = source[begin : begin + length]
        sampling = Sampling(rng.choice((0.0, 0.8)), seed=i)
        session = runtime.session(max_batch=1)
        request = session.submit(prompt, GenerateOptions(new, sampling, eos_token_ids=()))
        session.run()
        found.append(Question(prompt, sampling, new, request.tokens))
    return found


class Judge:
    """Compares tokens by their names."""

    def __init__(self, runtime: Runtime, account: Account) -> None:
        self._runtime, self._account = runtime, account
        text = runtime.text
        assert text is not None
        self._names = [text.token_text(i) for i in range(runtime.bundle.config.vocab_size)]
        self._ids = {name: i for i, name in enumerate(self._names)}

    def compare(self, question: Question, names: list[str], is_whole: bool) -> None:
        """An answer, or what of it was read."""
        expected = [self._names[token] for token in question.expected]
        with self._account.lock:
            self._account.tokens += len(names)
            if is_whole and len(names) != len(expected):
                self._account.wrong.append(f"{len(names)} tokens instead of {len(expected)}")
            for i, (found, wanted) in enumerate(zip(names, expected, strict=False)):
                if found != wanted:
                    self._differ(question, i, found)
                    return

    def _differ(self, question: Question, place: int, found: str) -> None:
        sequence = [*question.prompt, *question.expected[:place]]
        x = self._runtime.forward([sequence])[0, -1].astype(np.float64)
        if question.sampling.temperature:
            x /= question.sampling.temperature
            x += gumbel(question.sampling.seed, len(sequence), np.arange(len(x)))
        gap = x[question.expected[place]] - x[self._ids[found]]
        if abs(gap) < MARGIN:
            self._account.near_ties += 1
        else:
            self._account.wrong.append(f"token {place}: {found!r}, {gap:.3g} behind")


class LostError(Exception):
    """An answer that ended before it was whole."""


def client(url: str, asked: list[Question], judge: Judge, account: Account, seed: int) -> None:
    """One of many, until the server is gone."""
    rng = random.Random(seed)
    with httpx2.Client(base_url=url, timeout=300) as http:
        while True:
            way = rng.choices([*WAYS], [*WAYS.values()])[0]
            sent = time.monotonic()
            try:
                status = one_request(http, way, rng.choice(asked), judge, rng)
            except (LostError, httpx2.TransportError) as error:
                # What was sent to a server that is ending may find nobody.
                if sent < account.terminated or isinstance(error, LostError):
                    with account.lock:
                        account.wrong.append(f"{way}: lost: {error!r}")
                if account.terminated < math.inf:
                    return
                continue
            with account.lock:
                was_answered = status == 200 and way != "leave"
                if was_answered and sent < account.terminated < time.monotonic():
                    account.finished_after += 1
                account.ways[way] += 1
                account.statuses[status] += 1
                wanted = (400,) if way in ("too long", "no JSON") else (200, 429, 503)
                if status not in wanted:
                    account.wrong.append(f"{way}: status {status}")
            if status in (429, 503):
                time.sleep(rng.uniform(0.1, 1))


def one_request(
    http: httpx2.Client, way: str, question: Question, judge: Judge, rng: random.Random
) -> int:
    """Ask once; the status."""
    path, json_type = "/v1/completions", {"Content-Type": "application/json"}
    if way == "no JSON":
        return http.post(path, content=b'{"model": "glm-5.1", ', headers=json_type).status_code
    if way == "too long":
        return http.post(path, json=question.body(False) | {"prompt": [5] * 9000}).status_code
    if way == "whole":
        answer = http.post(path, json=question.body(False))
        if answer.status_code == 200:
            judge.compare(question, answer.json()["choices"][0]["logprobs"]["tokens"], True)
        return answer.status_code
    names: list[str] = []
    leaves_after = rng.randrange(question.count) if way == "leave" else None
    with http.stream("POST", path, json=question.body(True)) as answer:
        if answer.status_code != 200:
            return answer.status_code
        try:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise LostError(event["error"]["message"])
                    for choice in event["choices"]:
                        names += (choice["logprobs"] or {"tokens": []})["tokens"]
                if leaves_after is not None and len(names) > leaves_after:
                    break
                if way == "slow":
                    time.sleep(0.1)
        except httpx2.TransportError as error:
            raise LostError(f"after {len(names)} tokens: {error!r}") from error
    judge.compare(question, names, way != "leave")
    return 200


def main(arguments: list[str] | None = None) -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--settle", type=float, default=60.0, help="before memory is first read")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    export_checkpoint(TINY, BUNDLE, ExportOptions(dtypes=("float32",)))
    account = Account()
    with glm_trt.load(BUNDLE) as runtime:
        asked, judge = questions(runtime, options.questions), Judge(runtime, account)
        command = ["serve", str(BUNDLE), "--port", "0", "--json", "--max-waiting", "30",
                   "--drafts", "1", "--prefix-cache", "0.02"]  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "glm_trt.cli", *command],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as server:  # fmt: skip
            assert server.stdout is not None
            url, process = json.loads(server.stdout.readline())["url"], psutil.Process(server.pid)
            begun = time.monotonic()
            threads = [
                threading.Thread(target=client, args=(url, asked, judge, account, seed))
                for seed in range(options.clients)
            ]
            for thread in threads:
                thread.start()
            time.sleep(min(options.settle, options.seconds))
            early = process.memory_info().rss
            time.sleep(max(begun + options.seconds - time.monotonic(), 0))
            late = process.memory_info().rss
            account.terminated = time.monotonic()
            server.terminate()
            for thread in threads:
                thread.join()
            code = server.wait()
            ending = time.monotonic() - account.terminated
    growth = late / early - 1
    share = account.near_ties / max(account.tokens, 1)
    is_good = not account.wrong and growth <= GROWTH and share <= 1e-5 and code == 0
    figures = {
        "clients": options.clients, "seconds": options.seconds, "tokens": account.tokens,
        "near_ties": account.near_ties, "wrong": account.wrong[:20], "ways": dict(account.ways),
        "statuses": dict(account.statuses), "megabytes": [early / 1e6, late / 1e6],
        "exit_code": code, "finished_after_sigterm": account.finished_after,
        "seconds_to_end": ending,
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    print(f"{'well' if is_good else 'NOT WELL'}: {account.tokens} tokens, {len(account.wrong)} "
          f"wrong, {account.near_ties} near ties, memory {growth:+.1%}; "
          f"{account.finished_after} answers finished after SIGTERM, {ending:.1f} s")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
