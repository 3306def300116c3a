"""What the command shows: progress of long jobs on stderr, tables on stdout."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.status import Status


class Progress:
    """Call it with what is being done now; `quiet` says nothing.

    A caller that knows how much of its work is behind it says that too, from 0 to 1: the time left
    is what the rest takes at the rate so far.
    """

    def __init__(self, job: str, quiet: bool = False) -> None:
        self.job = job
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.status: Status | None = None
        self.doing, self.since = "", time.monotonic()
        self.done: float | None = None
        self.start = (0.0, self.since)  # of the work that `done` is a part of: `done`, and when

    def __enter__(self) -> Progress:
        """Start the live line, where there is a terminal."""
        if self.console.is_terminal:
            self.status = self.console.status(self.job)
            self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Stop the live line."""
        if kind is None:
            self._finish("")
        if self.status is not None:
            self.status.stop()

    def __call__(self, doing: str, done: float | None = None) -> None:
        """Say what is being done; what was done before gets its time, and the time left."""
        now = time.monotonic()
        if done is not None and (self.done is None or done < self.done):
            self.start = (done, now)  # other work, of which this is the first
        self.done = done
        left = self._left(now)
        self._finish(left)
        self.doing, self.since = doing, now
        if self.status is not None:
            self.status.update(f"{self.job}: {doing}{left}")

    def _left(self, now: float) -> str:
        done, (first, began) = self.done, self.start
        if done is None or done <= first:
            return ""
        seconds = round((now - began) * (1 - done) / (done - first))
        minutes = f"{seconds // 60} min " if seconds >= 60 else ""
        return f", about {minutes}{seconds % 60} s left"

    def _finish(self, left: str) -> None:
        if self.doing:
            seconds = time.monotonic() - self.since
            self.console.print(f"{self.job}: {self.doing} [dim]({seconds:.1f} s{left})[/dim]")


@contextmanager
def spinner(text: str, quiet: bool = False) -> Iterator[None]:
    """A turning mark and `text` on stderr while the body runs, on a terminal only."""
    console = Console(stderr=True, quiet=quiet, highlight=False)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns of text on stdout, as wide as their widest cell and indented by two.

    Not a table of rich, which wraps cells at the width of the terminal: what is piped is searched.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  " + "  ".join(cells).rstrip())
