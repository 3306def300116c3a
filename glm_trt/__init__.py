"""glm-trt: compile GLM-5.1 checkpoints to TensorRT."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glm_trt.engines.python.request import GenerateOptions
    from glm_trt.engines.python.runtime import Runtime
    from glm_trt.engines.python.sampling import Sampling
    from glm_trt.engines.python.session import Session

# onnxruntime, from 1.29 on, sends its maker what process runs what model on what machine, and keeps
# an identifier in the user's cache for that, unless this is set before it starts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["GenerateOptions", "Sampling", "Session", "__version__", "load"]

# Public names and where they are; loaded when first used, so that `import glm_trt` is instant.
_PUBLIC = {
    "GenerateOptions": "glm_trt.engines.python.request",
    "Sampling": "glm_trt.engines.python.sampling",
    "Session": "glm_trt.engines.python.session",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    bundle: str | Path,
    backend: str = "onnxruntime",
    *,
    provider: str | None = None,
    checkpoint: str | Path | None = None,
    threads: int | None = None,
) -> Runtime:
    """Open a bundle for running; use the result as a context manager.

    Parameters
    ----------
    bundle : directory that `glm-trt export` wrote; every hash in it is checked.
    backend : "onnxruntime", on any machine; "tensorrt" or "tensorrt-rtx" run the bundle's engines
        for the GPU that is present, in the checkpoint's dtype.
    provider : onnxruntime's execution provider: "cpu", the default, in float32; "cuda" or
        "tensorrt", in the checkpoint's dtype, which the package onnxruntime-gpu has.
    checkpoint : where the weights lie, if not where the bundle says.
    threads : CPU threads of onnxruntime, all cores if None.

    Raises
    ------
    BundleError
        If anything in the bundle or its checkpoint is missing or altered.
    MissingCapabilityError
        If the backend or the provider cannot run here; none is put in the place of another.
    GlmTrtError
        If there is no such backend or provider, or a provider is named for another backend.
    """
    # Loaded here so that `import glm_trt` is instant.
    from glm_trt.engines.python.runtime import Runtime
    from glm_trt.export.bundle.read import Bundle
    from glm_trt.model.errors import GlmTrtError

    if backend == "onnxruntime":
        from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend

        opened = Bundle.open(bundle, checkpoint)
        return Runtime(OnnxruntimeBackend(opened, threads, provider=provider or "cpu"))
    if provider is not None:
        raise GlmTrtError(f"provider {provider!r}: for the backend onnxruntime, not for {backend}")
    from glm_trt.engines.python.tensorrt_backend import open_backend
    from glm_trt.engines.python.tensorrt_engine import require_tensorrt

    require_tensorrt(backend)  # before gigabytes are hashed
    return Runtime(open_backend(Bundle.open(bundle, checkpoint), backend))
