"""What several folders of tests share."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports Triton, whose own functions are made for the interpreter or not at import.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from references import remembered_block
from traces import SharedTraces, trace_once

from glm_trt.export import trace
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.generate import CheckpointOptions, make_checkpoint
from glm_trt.validate.running.reference import Reference

# Side by side, each worker has one core: threads of several would wait for one another.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
torch.set_num_threads(1)

pytest_plugins = ["cpu_times"]


def pytest_collection_finish() -> None:
    """What imports made stays for good: looked through again and again, it costs a fifth of what
    tracing does.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests" / "data" / "glm-5.1-tiny"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files go to workers as a whole; those of some folders to one, as they share what is in memory
    (walks of the eager model) or runs (servers).
    """
    from xdist.scheduler import LoadFileScheduling

    class LoadSharing(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            together = ("tests/validate/", "tests/engines/serve/")
            return next(filter(nodeid.startswith, together), None) or super()._split_scope(nodeid)

    return LoadSharing(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """Exports and bisections take the traces that all tests share; what tests tracing calls it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace_block", trace_once)
        patch.setattr("glm_trt.validate.checking.graph_check.FreshGraphs", SharedTraces)
        yield


@pytest.fixture(scope="module")
def shared_walks() -> Iterator[None]:
    """What the eager model makes of a checkpoint is computed once for all modules that ask."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reference, "block", remembered_block)
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as a self-contained bundle. Copy it before changing it."""
    bundle = tmp_path_factory.mktemp("bundles") / "tiny"
    export_checkpoint(TINY, bundle, ExportOptions(materialize=True))
    return bundle


@pytest.fixture(scope="session")
def float32_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in float32, with engines for both of the stand-ins for TensorRT (sm80).

    Copy it before changing it.
    """
    place = tmp_path_factory.mktemp("float32")
    shutil.copytree(TINY, place / "c")
    export_float32(place)
    build_on_stand_ins(place / "b", "--no-plugins")
    return place / "b"


@pytest.fixture(scope="session")
def plugin_bundle(
    float32_bundle: Path, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same, with engines that keep our operators."""
    place = tmp_path_factory.mktemp("plugins") / "b"
    shutil.copytree(float32_bundle, place)
    build_on_stand_ins(place, "--plugins", str(library))
    return place


@pytest.fixture(scope="session")
def hybrid_bundle(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a hybrid, whose linear layers have states that are read and written by turns."""
    place = tmp_path_factory.mktemp("hybrid")
    make_checkpoint(CheckpointOptions("glm-5.1-hybrid", "tiny"), place / "c")
    export_float32(place)
    build_on_stand_ins(place / "b", "--plugins", str(library))
    return place / "b"


def export_float32(place: Path) -> None:
    """`b` of `c`, as if the checkpoint had been in float32, which onnxruntime computes in."""
    config = json.loads((place / "c" / "config.json").read_text())
    (place / "c" / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    options = ExportOptions(dtypes=("float32",), max_seq_len=150, materialize=True)
    export_checkpoint(place / "c", place / "b", options)


def build_on_stand_ins(bundle: Path, *options: str) -> None:
    """Engines for both flavours."""
    from on_stand_ins import glm_trt_on_stand_ins

    for backend in ("tensorrt", "tensorrt-rtx"):
        done = glm_trt_on_stand_ins(
            "build", str(bundle), "--backend", backend, "--target", "sm80", *options
        )
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def library() -> Path:
    """The library with the kernels of sm80 alone: what tests of every kernel need."""
    return build_plugins("--target", "sm80")


@pytest.fixture(scope="session")
def whole_library() -> Path:
    """The library as `make plugins` builds it; of use to slow tests only."""
    return build_plugins()


@pytest.fixture(
    scope="session", params=["library", pytest.param("whole_library", marks=pytest.mark.slow)]
)
def each_library(request: pytest.FixtureRequest) -> Path:
    """The library of one target and, where slow tests are run, the whole one."""
    found: Path = request.getfixturevalue(request.param)
    return found


def build_plugins(*options: str) -> Path:
    """Build the library, in a process without the interpreter; workers of a test run in turn."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "glm_trt.plugins", *options]
    done = subprocess.run(
        command, check=True, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    return ROOT / done.stdout.strip()
