"""The module onnxruntime: `from glm_trt.engines.python.onnxruntime_module import ort`.

Two distributions bring it, `onnxruntime` and `onnxruntime-gpu`, and write the same files. With both
of them, what runs is decided by which was installed last, and removing one breaks the other. So
importing this module raises MissingCapabilityError unless there is one.
"""

from __future__ import annotations

import importlib

from glm_trt.model.errors import MissingCapabilityError
from glm_trt.model.requirements import installed

__all__ = ["CPU", "GPU", "ort", "require_onnxruntime"]

CPU, GPU = "onnxruntime", "onnxruntime-gpu"
BACKEND = "backend 'onnxruntime'"


def require_onnxruntime() -> None:
    """Import it.

    Raises
    ------
    MissingCapabilityError
        If neither distribution is installed, both are, or the one that is cannot be loaded; it
        names what to tell pip.
    """
    versions = {name: found for name in (CPU, GPU) if (found := installed(name))}
    if len(versions) == 2:
        cpu, gpu = versions.values()
        raise MissingCapabilityError(
            f"{BACKEND}: {CPU} {cpu} and {GPU} {gpu} are both installed and overwrite one "
            f"another's files; keep one: pip uninstall -y {CPU} {GPU} && pip install {GPU}=={gpu} "
            f"(or {CPU}=={cpu}, for the CPU alone)"
        )
    try:
        module = importlib.import_module("onnxruntime")
        if hasattr(module, "InferenceSession"):
            return
        reason = "its files are not all there"  # what is left when the other was removed
    except (ImportError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    if not versions:
        raise MissingCapabilityError(
            f"{BACKEND} needs {CPU} or {GPU}, and neither is installed: "
            "pip install 'glm-trt[cpu]', or for NVIDIA GPUs pip install 'glm-trt[gpu]'"
        )
    ((name, found),) = versions.items()
    raise MissingCapabilityError(
        f"{BACKEND}: {name} {found} cannot be loaded ({reason}): "
        f"pip install --force-reinstall --no-deps {name}=={found}"
    )


require_onnxruntime()
import onnxruntime as ort  # noqa: E402
