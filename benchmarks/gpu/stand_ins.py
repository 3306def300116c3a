"""Steps without a GPU: the tests' driver and TensorRT in the place of the real ones.

Their rules are in tests/stand_ins/README.md. Kernels and graphs are done by interpreters, so what
takes time there says nothing of a GPU.
"""

from __future__ import annotations

import sys
from functools import cache

from outcome import ROOT, Settings

FOLDER = ROOT / "tests" / "stand_ins"
# The GPU that is stood in for, by the flavour of TensorRT that runs on it.
TARGETS = {"tensorrt": "sm90", "tensorrt-rtx": "sm89"}


@cache
def environment(settings: Settings) -> dict[str, str]:
    """Variables of a process on stand-ins, which are built where they are not yet."""
    sys.path[:0] = [str(ROOT), str(FOLDER)]
    import on_stand_ins

    return on_stand_ins.environment() | {"STAND_IN_TARGET": TARGETS[settings.backend]}
