"""Steps without a GPU: the tests' driver and TensorRT in the place of the real ones.

Their rules are in tests/stand_ins/README.md. Kernels and graphs are done by interpreters, so what
takes time there says nothing of a GPU.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from outcome import ROOT, Settings

FOLDER = ROOT / "tests" / "stand_ins"
TENSORRT = FOLDER / "nvinfer"
# The GPU that is stood in for, by the flavour of TensorRT that runs on it.
TARGETS = {"tensorrt": "sm90", "tensorrt-rtx": "sm89"}
LIBRARY = "plugins/libglm_trt_plugins.so"  # under the output: compiled for that GPU


@cache
def environment(settings: Settings) -> dict[str, str]:
    """Variables for a process on stand-ins, which are built where they are not yet."""
    sys.path[:0] = [str(ROOT), str(FOLDER)]
    from stand_in_build import build_driver

    driver = build_driver().parent
    found = {
        "STAND_IN_TARGET": TARGETS[settings.backend],
        "STAND_IN_KERNELS": str((settings.output / LIBRARY).parent / "kernels.json"),
        "LD_LIBRARY_PATH": _joined(str(driver), os.environ.get("LD_LIBRARY_PATH")),
    }
    if TENSORRT.is_dir():
        sys.path.insert(0, str(TENSORRT))
        import build_tensorrt

        found |= build_tensorrt.environment(driver)
    return found


def _joined(*places: str | Path | None) -> str:
    return os.pathsep.join(str(place) for place in places if place)
