"""The backend's device on the strict driver, whose process ends with 86 where a rule was broken."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from stand_in_build import build_driver

from glm_trt.model.child_python import python

PROGRAMS = Path(__file__).with_name("gpu_programs.py")


def run(seed: int, *names: str) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="the backend calls the driver through it")
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(build_driver().parent),
        "STAND_IN_SEED": str(seed),
    }
    done = subprocess.run(
        python(str(PROGRAMS), *names), capture_output=True, text=True, env=environment, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_programs() -> None:
    """All of them in one process, which starts once."""
    run(0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 50))
def test_in_any_order_of_work(seed: int) -> None:
    run(seed)
