"""Servers as users start them: `glm-trt serve` in a process of its own, on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI


@dataclass
class Running:
    """A server, and a client of it.

    Attributes
    ----------
    errors : lines of its standard error so far: read all the time, or it would wait for a reader.
    """

    process: subprocess.Popen[str]
    url: str
    client: OpenAI
    errors: list[str]
    _reader: threading.Thread

    def log(self) -> list[dict[str, Any]]:
        """The log's lines so far; all of them when it has ended."""
        if self.process.poll() is not None:
            self._reader.join()
        lines = [json.loads(line) for line in [*self.errors] if line.startswith("{")]
        return [line for line in lines if line["event"] == "request"]

    def logged(self, request_id: str) -> dict[str, Any]:
        """The line of one request, which comes when its answer has gone."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = [line for line in self.log() if line["request_id"] == request_id]
            if found:
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"no line of {request_id}: {self.errors}")

    def end(self) -> int:
        """Stop it as a container is stopped; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


Start = Callable[..., Running]


def _read(stream: Iterable[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line)


def start(
    bundle: Path, *options: str, key: str = "none", environment: dict[str, str] | None = None
) -> Running:
    """Start one, and wait until it answers."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "glm_trt.cli", "serve", str(bundle), "--port", "0", "--json",
         *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    url = json.loads(line)["url"]
    errors: list[str] = []
    reader = threading.Thread(target=_read, args=(process.stderr, errors), daemon=True)
    reader.start()
    client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    return Running(process, url, client, errors, reader)
