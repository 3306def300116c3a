"""The C++ runtime on the strict driver of `tests/stand_ins`, and a TensorRT on it.

The tests are `device.cpp` and `whole.cpp` in `engines/cpp/tests`; `late_tensorrt.cpp` beside them
is built with whatever headers there are, and says its rules and where they are from.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

# Calls of an open that may find no memory: each once, and the last of those made in numbers.
FAILING = ("cuStreamCreate:1", "cuMemHostAlloc:1", "cuMemHostAlloc:8", "cuEventCreate:1",
           "cuEventCreate:5")  # fmt: skip


def run(
    build: Path, *arguments: str, program: str = "device", **settings: str
) -> subprocess.CompletedProcess[str]:
    place = build / "tests" / "driver"
    done = subprocess.run(
        [build / "tests" / program, *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"LD_LIBRARY_PATH": str(place), "STAND_IN_TARGET": "sm90"} | settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_the_device(tests_build: Path) -> None:
    run(tests_build)


@pytest.mark.parametrize("call", FAILING)
def test_a_failed_open_leaves_nothing(tests_build: Path, call: str) -> None:
    run(tests_build, "failing", STAND_IN_FAIL=call)


def test_the_whole(tests_build: Path) -> None:
    """Two bundles in two threads, sequences that outlive their runtime, the C interface."""
    run(tests_build, program="whole")


@pytest.mark.parametrize("at", [1, 4, 8, 14])
def test_a_failed_load_leaves_nothing(tests_build: Path, at: int) -> None:
    """Device memory is used up among weights, and among a sequence's buffers."""
    run(tests_build, "failing", program="whole", STAND_IN_FAIL=f"cuMemAlloc:{at}")


def test_the_command_makes_the_same_tokens(runtime_build: Path, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    wanted = run(runtime_build, "write", str(place), program="whole").stdout.split()
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(runtime_build / "tests" / "driver"), "STAND_IN_TARGET": "sm90",
    }  # fmt: skip
    command = [str(runtime_build / "glm-trt-run"), str(place), "--input-ids", "1,2,3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(wanted) > 3
    assert json.loads(done.stdout)["token_ids"] == [int(token) for token in wanted]
    little = environment | {"STAND_IN_MEMORY": "3000"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=little)
    assert done.returncode == 3
    assert "too little memory" in done.stderr and "weights 1280" in done.stderr
    done = subprocess.run(
        [*command, "--backend", "tensorrt-rtx"], capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 3 and "libtensorrt_rtx.so.1 cannot be loaded" in done.stderr
