"""What one TensorRT does with the plugin library and with plans: a JSON on the last line.

    python load_plans.py MODULE LIBRARY [PLAN ...]

MODULE is tensorrt, tensorrt_rtx or tensorrt_lean. The library is loaded into the registry of one
runtime; another has none of it, as registries are a runtime's own.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def load(module: str) -> Any:
    """The Python module, which the lean runtime's wheel has under the name of its bindings."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if module != "tensorrt_lean" or error.name != module:
            raise
        return importlib.import_module("tensorrt_lean_bindings")


def creators(runtime: Any) -> list[str]:
    """The plugins in a runtime's registry, as namespace::name."""
    found = runtime.get_plugin_registry().all_creators
    return sorted(f"{c.plugin_namespace}::{c.name}" for c in found)


@contextmanager
def primary_context() -> Iterator[None]:
    """The GPU's primary context is current, which what TensorRT makes of a plan needs as long as it
    lives; released when the block has ended.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    context = ctypes.c_void_p()
    failed = (
        driver.cuInit(0)
        or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        or driver.cuCtxSetCurrent(context)
    )
    if failed:
        raise SystemExit(f"the driver gives no context: error {failed}")
    yield
    driver.cuCtxSetCurrent(None)
    driver.cuDevicePrimaryCtxRelease_v2(0)


def looked_at(trt: Any, library: str, plans: list[str]) -> dict[str, Any]:
    """What the runtimes have and what they make of plans; nothing of theirs is left behind it."""
    logger = trt.Logger(trt.Logger.WARNING)
    one, other = trt.Runtime(logger), trt.Runtime(logger)
    before = creators(one)
    handle = one.get_plugin_registry().load_library(library)
    added = sorted({*creators(one)} - {*before})
    found: dict[str, Any] = {
        "version": str(trt.__version__), "loaded": handle is not None, "creators": added,
        "in_another_runtime": sorted({*creators(other)} & {*added}), "plans": {},
    }  # fmt: skip
    without_scratch = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    for plan in plans:
        engine = one.deserialize_cuda_engine(Path(plan).read_bytes())
        context = None if engine is None else engine.create_execution_context(without_scratch)
        found["plans"][plan] = context is not None
        del context, engine  # in this order
    return found


def main() -> int:
    """Load, list, print."""
    module, library, *plans = sys.argv[1:]
    trt = load(module)
    with primary_context():
        found = looked_at(trt, library, plans)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
