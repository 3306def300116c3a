"""Progress of long jobs: lines with counts, times, and the time left."""

from __future__ import annotations

import time

import pytest

from glm_trt.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def test_lines_where_there_is_no_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("job") as progress:
        progress("loading")
        clock.now += 7
        for i in range(4):  # 10 seconds each
            progress(f"part {i + 1} of 4", i / 4)
            clock.now += 10
        progress("second part 2 of 3", 1 / 3)
        clock.now += 60
        progress("second part 3 of 3", 2 / 3)
        clock.now += 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "job: loading (7.0 s)",
        "job: part 1 of 4 (10.0 s, about 30 s left)",
        "job: part 2 of 4 (10.0 s, about 20 s left)",
        "job: part 3 of 4 (10.0 s, about 10 s left)",
        "job: part 4 of 4 (10.0 s)",
        "job: second part 2 of 3 (60.0 s, about 1 min 0 s left)",
        "job: second part 3 of 3 (1.0 s)",
    ]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("job", quiet=True) as progress:
        progress("loading", 0.5)
    assert capsys.readouterr() == ("", "")
