"""`--cpu-times`: what each file of tests cost and the dearest tests, children included."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

DEAREST = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-times", action="store_true", help="CPU seconds of files and tests")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CpuTimes(), "glm_trt_cpu_times")


def cpu_seconds() -> float:
    """Of this process and of the children it has waited for."""
    return sum(os.times()[:4])


class CpuTimes:
    """Reports carry what has been spent since the report before; they travel from the workers."""

    def __init__(self) -> None:
        self.last = cpu_seconds()
        self.files: Counter[str] = Counter()
        self.tests: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        report = yield
        now = cpu_seconds()
        report.cpu_seconds, self.last = now - self.last, now
        return report

    def pytest_collection_finish(self) -> None:
        self.last = cpu_seconds()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seconds = getattr(report, "cpu_seconds", 0.0)
        self.files[report.nodeid.split("::")[0]] += seconds
        self.tests[report.nodeid] += seconds

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if config.getoption("--cpu-times"):
            terminalreporter.section(f"CPU seconds: {self.files.total():.0f} in tests")
            # A fixture counts for the first test that asks for it.
            for name, seconds in [*self.files.most_common(), *self.tests.most_common(DEAREST)]:
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")
