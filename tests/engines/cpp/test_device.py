"""The C++ runtime's device on a driver that does work late and counts what is left.

`engines/cpp/tests/device.cpp` is the test, `late_driver.cpp` beside it the driver with its rules.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

# Calls of an open that may find no memory: each once, and the last of those made in numbers.
FAILING = ("cuStreamCreate:1", "cuMemHostAlloc:1", "cuMemHostAlloc:8", "cuEventCreate:1",
           "cuEventCreate:5")  # fmt: skip


def run(build: Path, *arguments: str, **settings: str) -> None:
    place = build / "tests" / "driver"
    done = subprocess.run(
        [build / "tests" / "device", *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"LD_LIBRARY_PATH": str(place)} | settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_device(tests_build: Path) -> None:
    run(tests_build)


@pytest.mark.parametrize("call", FAILING)
def test_a_failed_open_leaves_nothing(tests_build: Path, call: str) -> None:
    run(tests_build, "failing", STAND_IN_FAIL=call)
