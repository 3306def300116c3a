"""Servers as users start them: `glm-trt serve` in a process of its own, on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI


@dataclass
class Running:
    """A server, and a client of it."""

    process: subprocess.Popen[str]
    url: str
    client: OpenAI

    def end(self) -> int:
        """Stop it as a container is stopped; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


Start = Callable[..., Running]


def start(bundle: Path, *options: str, key: str = "none") -> Running:
    """Start one, and wait until it answers."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "glm_trt.cli", "serve", str(bundle), "--port", "0", "--json",
         *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    url = json.loads(line)["url"]
    return Running(process, url, OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))
