"""glm-trt: compile GLM-5.1 checkpoints to TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glm_trt.engines.python.runtime import Runtime

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    bundle: str | Path,
    backend: str = "onnxruntime",
    *,
    checkpoint: str | Path | None = None,
    threads: int | None = None,
) -> Runtime:
    """Open a bundle for running; use the result as a context manager.

    Parameters
    ----------
    bundle : directory that `glm-trt export` wrote; every hash in it is checked.
    backend : "onnxruntime". Running TensorRT engines is not built yet.
    checkpoint : where the weights lie, if not where the bundle says.
    threads : CPU threads, all cores if None; the first runtime of a process sets it.

    Raises
    ------
    BundleError
        If anything in the bundle or its checkpoint is missing or altered.
    MissingCapabilityError
        If the backend cannot run here.
    """
    # Loaded here so that `import glm_trt` is instant.
    from glm_trt.engines.bundle import Bundle
    from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
    from glm_trt.engines.python.runtime import Runtime
    from glm_trt.model.errors import MissingCapabilityError

    if backend != "onnxruntime":
        raise MissingCapabilityError(f"backend {backend!r}: only onnxruntime can run bundles yet")
    return Runtime(OnnxruntimeBackend(Bundle.open(bundle, checkpoint), threads))
