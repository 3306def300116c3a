"""Graphs that tests trace, kept by content: a kind of block is traced once for all of them.

A trace depends on the sources it is made from, on torch and its exporter, on kind and dtype, and on
those fields of the config that it reads: an embedding has one graph for all checkpoints of its
sizes. Which layer is of that kind is not among them, as every export takes the first one for all
(`test_layers_of_a_kind_share_a_graph` sees that it may). Under `build/test-traces` there is a
folder for each state of the sources, and in it two files for each trace, the graph and what was
read; workers that want one of the same kind wait for the first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from filelock import FileLock

from glm_trt.export import trace
from glm_trt.model.config import ModelConfig

ROOT = Path(__file__).parent.parent.parent
STORE = ROOT / "build" / "test-traces"
SOURCES = ("model", "plugins", "export")
# Fields that say where a kind stands, not what it is.
SCHEDULE = frozenset({"indexer_types", "layer_types", "mlp_layer_types", "num_hidden_layers",
                      "num_nextn_predict_layers"})  # fmt: skip
PACKAGES = ("torch", "onnx", "onnxscript")
UNUSED_AFTER_SECONDS = 24 * 60 * 60
FIELDS = frozenset(field.name for field in fields(ModelConfig))

Trace = Callable[[ModelConfig, str, torch.dtype], onnx.ModelProto]
TRACE: Trace = trace.trace_block


class WatchedConfig(ModelConfig):
    """The same config, which remembers what was read of it. Equal to itself alone: what is kept by
    config elsewhere must not answer in the place of a read.
    """

    read: set[str]
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __getattribute__(self, name: str) -> Any:
        if name in FIELDS:
            object.__getattribute__(self, "read").add(name)
        return object.__getattribute__(self, name)


def watched(config: ModelConfig) -> WatchedConfig:
    made = object.__new__(WatchedConfig)
    vars(made).update(vars(config), read=set())
    return made


def trace_once(config: ModelConfig, kind: str, dtype: torch.dtype) -> onnx.ModelProto:
    """As `trace_block`; what was traced from the same sources and fields is read."""
    of_kind = f"{kind}-{str(dtype).removeprefix('torch.')}"
    with FileLock(store() / f"{of_kind}.lock"):
        for kept in sorted(store().glob(f"{of_kind}-*.json")):
            fields_read = json.loads(kept.read_text())
            if all(repr(getattr(config, name)) == value for name, value in fields_read.items()):
                return onnx.load(kept.with_suffix(".onnx"))
        watch = watched(config)
        model = TRACE(watch, kind, dtype)
        # A narrow kind, such as `sparse_full_fp8_2`, is counted through the layers.
        read = watch.read if kind[-1].isdigit() else watch.read - SCHEDULE
        content = json.dumps({name: repr(getattr(config, name)) for name in sorted(read)})
        path = store() / f"{of_kind}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
        onnx.save(model, path.with_suffix(".onnx"))
        partial = path.with_suffix(".partial")
        partial.write_text(content)
        partial.rename(path)  # last: a graph counts when it is whole
    return model


class SharedTraces:
    """In the place of `FreshGraphs`, whose process would trace anew."""

    def __init__(self, config: Mapping[str, Any], kinds: Sequence[str], dtype: str) -> None:
        self._config, self._dtype = ModelConfig.from_dict(config, "config"), dtype

    def model(self, kind: str) -> onnx.ModelProto:
        return trace_once(self._config, kind, getattr(torch, self._dtype))

    def close(self) -> None:
        pass


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
