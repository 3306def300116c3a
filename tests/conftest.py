"""What several folders of tests share."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Before anything imports Triton, whose own functions are made for the interpreter or not at import.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from traces import trace_once

from glm_trt.export import trace
from glm_trt.export.bundle import ExportOptions, export_checkpoint
from glm_trt.plugins.library import LIBRARY

# Side by side, each worker has one core: threads of several would wait for one another.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    torch.set_num_threads(1)

pytest_plugins = ["cpu_times"]

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests" / "data" / "glm-5.1-tiny"


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """Exports and bisections take the traces that all tests share; what tests tracing calls it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace_block", trace_once)
        patch.setattr("glm_trt.validate.bisect.trace_block", trace_once)
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as a self-contained bundle. Copy it before changing it."""
    bundle = tmp_path_factory.mktemp("bundles") / "tiny"
    export_checkpoint(TINY, bundle, ExportOptions(materialize=True))
    return bundle


@pytest.fixture(scope="session")
def library() -> Path:
    """The library, built as `make plugins` does (in a process without the interpreter)."""
    output = ROOT / "build" / "plugins"
    output.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "glm_trt.plugins.build", "--output", str(output)]
    with (output / ".lock").open("w") as lock:  # test workers build it in turn
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
    return output / LIBRARY
