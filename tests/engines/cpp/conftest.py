"""The C++ runtime, built once for all tests of it, and with sanitizers for the slow ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from glm_trt.engines.build.runtime import build_runtime

ROOT = Path(__file__).parents[3]


def built(name: str, *, sanitize: str = "") -> Path:
    """The directory `name` under `build`, with the tests; workers build it in turn."""
    output = ROOT / "build" / name
    output.mkdir(parents=True, exist_ok=True)
    with FileLock(output / ".lock"):
        return build_runtime(output, sanitize=sanitize, tests=True)


@pytest.fixture(scope="session")
def runtime_build() -> Path:
    """As `make runtime` builds it, and the tests."""
    return built("runtime-tests")


@pytest.fixture(scope="session", params=[
    "plain", *(pytest.param(x, marks=pytest.mark.slow) for x in ("sanitized", "threads")),
])  # fmt: skip
def tests_build(request: pytest.FixtureRequest) -> Path:
    """The same, and what `make runtime-test` makes: with AddressSanitizer and UBSan, or with
    ThreadSanitizer.
    """
    sanitizers = {"sanitized": "address", "threads": "thread"}
    if request.param == "plain":
        return built("runtime-tests")
    return built(f"runtime-{request.param}", sanitize=sanitizers[request.param])


@pytest.fixture(scope="session")
def probe(tests_build: Path) -> Path:
    """The program that answers for the C++ runtime (engines/cpp/tests/probe.cpp)."""
    return tests_build / "tests" / "probe"
