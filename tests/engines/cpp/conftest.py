"""The C++ runtime with sanitizers, built once for all tests of it."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from glm_trt.engines.build_runtime import build_runtime

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def runtime_build() -> Path:
    """The build directory, as `make runtime-test` makes it."""
    output = ROOT / "build" / "runtime-sanitized"
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as lock:  # test workers build it in turn
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_runtime(output, sanitize=True, tests=True)


@pytest.fixture(scope="session")
def probe(runtime_build: Path) -> Path:
    """The program that answers for the C++ runtime (engines/cpp/tests/probe.cpp)."""
    return runtime_build / "tests" / "probe"
