"""Processes on the stand-ins for the driver and for TensorRT."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from nvinfer.build_tensorrt import build_tensorrt
from stand_in_build import build_driver

ROOT = Path(__file__).parents[2]
MODULES = Path(__file__).parent / "nvinfer" / "python"
COMMAND = "import sys; from glm_trt.cli import main; sys.exit(main())"


@functools.cache
def library_path() -> str:
    """For LD_LIBRARY_PATH: libcuda.so.1, libnvinfer.so.10 and libtensorrt_rtx.so.1."""
    return os.pathsep.join(map(str, (build_driver().parent, build_tensorrt())))


def environment() -> dict[str, str]:
    """Of a process that finds the stand-ins in place of the libraries and Python modules."""
    libraries = [library_path(), os.environ.get("LD_LIBRARY_PATH", "")]
    modules = [str(MODULES), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PYTHONPATH": os.pathsep.join(filter(None, modules)),
    }


def glm_trt_on_stand_ins(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command with these arguments; `settings` are variables of its environment."""
    return subprocess.run(
        [sys.executable, "-P", "-c", COMMAND, *arguments], capture_output=True, text=True,
        check=False, env=environment() | settings,
    )  # fmt: skip
