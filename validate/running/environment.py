"""What a report says of the build and of the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from glm_trt.export.bundle.format import Shard
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.requirements import installed
from glm_trt.validate.running.names import SUBJECTS

_PACKAGES = ("glm-trt", "torch", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "triton",
             "tensorrt-cu13", "tensorrt-rtx-cu13")  # fmt: skip


def describe_backend(
    bundle: Bundle, name: str, dtype: str, provider: str | None = None
) -> dict[str, Any]:
    """The backend, and the engines it runs."""
    engines = [
        {
            "kind": engine.kind,
            "target": engine.target,
            "backend_version": engine.backend_version,
            "plugins": list(engine.plugins),
            "key": engine.key,
            "plugin_library": engine.plugin_library,
        }
        for engine in bundle.manifest.engines
        if (engine.backend, engine.dtype) == (name, dtype)
    ]
    description = SUBJECTS[name]
    if provider not in (None, "cpu"):
        description = f"onnxruntime's provider {provider}, the graphs as they are in the bundle"
    return {"name": name, "description": description, "dtype": dtype, "engines": engines}


def describe_environment(bundle: Bundle, weights: tuple[Shard, ...] = ()) -> dict[str, Any]:
    """Versions, hashes of what was compared, the machine.

    Parameters
    ----------
    weights : the files that the truth was read from, as a manifest lists them, if they are not
        those that the bundle reads its weights from.
    """
    manifest = bundle.manifest
    graphs = {graph.file for graph in manifest.graphs}
    return {
        "versions": {name: found for name in _PACKAGES if (found := installed(name))},
        "exported_with": manifest.versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "hashes": {name: entry.sha256 for name, entry in manifest.files.items() if name in graphs},
        "checkpoint": {
            shard.file: shard.sha256
            or f"header {shard.header_sha256}, sample {shard.sample_sha256}"
            for shard in weights or manifest.checkpoint.files
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
