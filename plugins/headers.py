"""Where the headers lie that our C++ is compiled with: TensorRT's and CUDA's. Nothing is linked."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from glm_trt.model.errors import MissingCapabilityError


def tensorrt_headers() -> Path:
    """The folder of NvInfer.h: under TENSORRT_ROOT, the system's, or the header wheel's."""
    spec = find_spec("kernel_lens")
    wheel = Path(spec.origin).parent / "include" / "tensorrt" if spec and spec.origin else None
    root = os.environ.get("TENSORRT_ROOT")
    places = [Path(root) / "include"] if root else []
    places += [Path("/usr/include/x86_64-linux-gnu"), Path("/usr/local/tensorrt/include")]
    for place in [*places, *([wheel] if wheel else [])]:
        if (place / "NvInfer.h").is_file():
            return place
    raise MissingCapabilityError(
        "TensorRT's headers (NvInfer.h) are missing: set TENSORRT_ROOT to your SDK, or run "
        "`make setup`"
    )


def cuda_headers() -> Path:
    """The folder of cuda.h: Triton's wheel carries one."""
    spec = find_spec("triton")
    place = Path(spec.origin).parent / "backends/nvidia/include" if spec and spec.origin else None
    if place is None or not (place / "cuda.h").is_file():
        raise MissingCapabilityError("Triton is missing: run `make setup`")
    return place
