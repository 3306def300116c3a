"""A conversation as it is typed: commands, editing, history, the ends of it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from glm_trt.chat_input import COMMANDS, turns
from glm_trt.cli import main


def said(monkeypatch: pytest.MonkeyPatch, text: str, forget: Callable[[], None]) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return list(turns(forget, quiet=False))


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    forgotten: list[int] = []
    lines = "one\n\n/help\n/clear\n /etc/passwd is a file \n/clera\n/exit\nnever read\n"
    assert said(monkeypatch, lines, lambda: forgotten.append(1)) == ["one", "/etc/passwd is a file"]
    assert forgotten == [1]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(name in captured.err for name in COMMANDS)
    assert "/clera: no such command; /help lists" in captured.err


def test_clear_forgets(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(text: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        arguments = ["--chat", "--system", "x = 1", "--max-new-tokens", "5"]
        assert main(["run", str(tiny_bundle), *arguments, "--json"]) == 0
        return capsys.readouterr().out.splitlines()

    first, again = answers("import os\n/clear\nimport os\n")
    assert first == again  # nothing of the first is in the second, and --system is in both
    _, other = answers("import os\nimport os\n")
    assert other != first


class Terminal:
    """`glm-trt run --chat` on a pseudo-terminal."""

    def __init__(self, bundle: Path) -> None:
        self.main, other = pty.openpty()
        command = [sys.executable, "-m", "glm_trt.cli", "run", str(bundle), "--chat",
                   "--max-new-tokens", "3"]  # fmt: skip
        environment = os.environ | {"TERM": "xterm"}

        def own_terminal() -> None:  # so that Ctrl-C there is a signal
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        self.process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other,
                                        env=environment, preexec_fn=own_terminal)  # fmt: skip
        os.close(other)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self.main, keys.encode())

    def press_until(self, keys: str, text: str) -> None:
        """Press again each second: between the mark and the wait behind it, Python sees none."""
        until = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            self.type(keys)
            if select.select([self.main], [], [], 1)[0]:
                self.seen += os.read(self.main, 4096).decode(errors="replace")

    def press_to_leave(self, keys: str) -> int:
        """Press again each second: between two lines the terminal keeps no end of the input."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            self.type(keys)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(1)
        raise AssertionError(self.seen)

    def wait_for(self, text: str, times: int = 1) -> None:
        until = time.monotonic() + 90
        while self.seen.count(text) < times:
            assert time.monotonic() < until, self.seen
            if select.select([self.main], [], [], 1)[0]:
                self.seen += os.read(self.main, 4096).decode(errors="replace")


def test_terminal(tiny_bundle: Path) -> None:
    terminal = Terminal(tiny_bundle)
    terminal.wait_for("loading")  # a spinner
    terminal.wait_for("> ")
    terminal.type("/hepl\x7f\x7flp\r")  # two letters taken back
    terminal.wait_for("forget the conversation")
    terminal.type("\x1b[A\r")  # the line before, called back
    terminal.wait_for("forget the conversation", 2)
    terminal.type("import os\r")
    terminal.wait_for("3 tokens in")
    terminal.wait_for("> ", 4)
    terminal.press_until("\x03", "leave with /exit or Ctrl-D")  # at the mark: it goes on
    assert terminal.press_to_leave("\x04") == 0
    os.close(terminal.main)
    assert "Traceback" not in terminal.seen
