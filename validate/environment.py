"""What a report says of the build and of the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from glm_trt.engines.bundle import Bundle
from glm_trt.model.requirements import installed
from glm_trt.validate.names import SUBJECTS

_PACKAGES = ("glm-trt", "torch", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "triton",
             "tensorrt-cu13", "tensorrt-rtx-cu13")  # fmt: skip


def describe_backend(
    bundle: Bundle, name: str, dtype: str, provider: str | None = None
) -> dict[str, Any]:
    """The backend, and the engines it runs."""
    engines = [
        {key: entry[key] for key in ("kind", "target", "backend_version", "plugins", "key")}
        | {"plugin_library": entry["plugin_library"]}
        for entry in bundle.manifest["engines"]
        if entry["backend"] == name and entry["dtype"] == dtype
    ]
    description = SUBJECTS[name]
    if provider not in (None, "cpu"):
        description = f"onnxruntime's provider {provider}, the graphs as they are in the bundle"
    return {"name": name, "description": description, "dtype": dtype, "engines": engines}


def describe_environment(
    bundle: Bundle, weights: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Versions, hashes of what was compared, the machine.

    Parameters
    ----------
    weights : the files that the truth was read from, as a manifest lists them, if they are not
        those that the bundle reads its weights from.
    """
    manifest = bundle.manifest
    graphs = {graph["file"] for graph in manifest["graphs"]}
    return {
        "versions": {name: found for name in _PACKAGES if (found := installed(name))},
        "exported_with": manifest["versions"],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "hashes": {
            name: entry["sha256"] for name, entry in manifest["files"].items() if name in graphs
        },
        "checkpoint": {
            entry["file"]: entry["sha256"]
            or f"header {entry['header_sha256']}, sample {entry['sample_sha256']}"
            for entry in weights or manifest["checkpoint"]["files"]
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
