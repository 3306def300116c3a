"""Graphs that tests trace, kept by content: a kind of block is traced once for all of them.

A trace depends on the sources it is made from, on torch and its exporter, and on config, kind and
dtype. Under `build/test-traces` there is a folder for each state of the sources, and in it a file
for each trace, whole or not at all; workers that want the same one wait for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import onnx
import torch

from glm_trt.export import trace
from glm_trt.model.config import ModelConfig

ROOT = Path(__file__).parent.parent.parent
STORE = ROOT / "build" / "test-traces"
SOURCES = ("model", "plugins", "export")
PACKAGES = ("torch", "onnx", "onnxscript")
UNUSED_AFTER_SECONDS = 24 * 60 * 60

Trace = Callable[[ModelConfig, str, torch.dtype], onnx.ModelProto]
TRACE: Trace = trace.trace_block


def trace_once(config: ModelConfig, kind: str, dtype: torch.dtype) -> onnx.ModelProto:
    """As `trace_block`; what was traced from the same sources is read."""
    key = hashlib.sha256(repr((config, kind, dtype)).encode()).hexdigest()[:32]
    path = store() / f"{key}.onnx"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_file():
            return onnx.load(path)
        model = TRACE(config, kind, dtype)
        partial = path.with_suffix(".partial")
        onnx.save(model, partial)
        partial.rename(path)
    return model


@cache
def store() -> Path:
    """The folder of the present sources; those that no run has used for a day are removed."""
    digest = hashlib.sha256(repr([version(name) for name in PACKAGES]).encode())
    for path in sorted(p for of in SOURCES for p in (ROOT / of).rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    found = STORE / digest.hexdigest()[:32]
    found.mkdir(parents=True, exist_ok=True)
    os.utime(found)
    for other in STORE.iterdir():
        if other != found and time.time() - other.stat().st_mtime > UNUSED_AFTER_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    return found
