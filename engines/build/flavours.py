"""TensorRT's two flavours: everything in which building with one differs from the other.

`tensorrt-rtx` compiles ahead of time for any target it knows, on a machine without a GPU.
`tensorrt` builds on, and for, the GPU that is present.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_trt.model.errors import GlmTrtError, MissingCapabilityError

BACKENDS = ("tensorrt", "tensorrt-rtx")
# What is in data centres and on desks; bfloat16 needs sm80.
RTX_TARGETS = ("sm80", "sm86", "sm89", "sm120")
OTHERWISE = "; tensorrt-rtx builds without one"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Flavour:
    """One flavour, loaded: `trt` is its Python module."""

    backend: str
    trt: Any

    @property
    def version(self) -> str:
        """The library's version."""
        return str(self.trt.__version__)

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for targets other than the GPU that is present, if any is."""
        return self.backend == "tensorrt-rtx"

    def known_targets(self) -> tuple[str, ...]:
        """The targets that engines can be built for on this machine."""
        if not self.ahead_of_time:
            return (present_target(),)
        names = self.trt.ComputeCapability.__members__
        known = [name.lower() for name in names if name[:2] == "SM" and name[2:].isdigit()]
        return tuple(sorted(known, key=lambda name: int(name[2:])))

    def chosen_targets(self, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
        """`wanted`, checked; what is built by default if None."""
        known = self.known_targets()
        if wanted is None:
            return RTX_TARGETS if self.ahead_of_time else known
        for target in wanted:
            if target not in known:
                why = "knows" if self.ahead_of_time else "builds only for the GPU present,"
                raise GlmTrtError(
                    f"target {target!r}: {self.backend} {self.version} {why} {', '.join(known)}"
                )
        return tuple(dict.fromkeys(wanted))

    def environment(self, directory: Path) -> dict[str, str]:
        """Variables for a process that builds with plugins; `directory` is for its files.

        The parser of tensorrt-rtx opens its library by a name without version at the first plugin
        layer, which the wheel does not have, and ends the process where it is not found.
        """
        if not self.ahead_of_time:
            return {}
        spec = importlib.util.find_spec("tensorrt_rtx_libs")
        for place in spec.submodule_search_locations or () if spec else ():
            for library in Path(place).glob("libtensorrt_rtx.so.*"):
                (directory / "libtensorrt_rtx.so").symlink_to(library)
                places = (str(directory), os.environ.get("LD_LIBRARY_PATH"))
                return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, places))}
        return {}

    def configure(self, config: Any, target: str) -> None:
        """Set on a builder config what only this flavour has."""
        if self.ahead_of_time:
            capability = self.trt.ComputeCapability.__members__[target.upper()]
            config.num_compute_capabilities = 1
            config.set_compute_capability(capability, 0)


def load_flavour(backend: str) -> Flavour:
    """Import a flavour's library.

    Raises
    ------
    GlmTrtError
        If `backend` is neither of `BACKENDS`.
    MissingCapabilityError
        If the library is not installed, or `tensorrt` finds no GPU.
    """
    if backend not in BACKENDS:
        raise GlmTrtError(f"backend {backend!r}: engines are built with {' or '.join(BACKENDS)}")
    if backend == "tensorrt":
        present_target()  # without a GPU, installing the library would not help
    module = backend.replace("-", "_")
    try:
        return Flavour(backend, importlib.import_module(module))
    except (ImportError, OSError) as error:
        raise MissingCapabilityError(
            f"backend {backend!r}: the Python module {module} cannot be loaded ({error}); "
            f"pip install 'glm-trt[{backend}]'"
        ) from None


def present_target(what: str = "backend 'tensorrt'", instead: str = OTHERWISE) -> str:
    """The target of the first GPU, asked of the driver, which needs no other library.

    Parameters
    ----------
    what : needs it; for the error.
    instead : what to do without one; for the error.

    Raises
    ------
    MissingCapabilityError
        If there is no driver, or no GPU.
    """
    needs = f"{what} needs a GPU"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuInit  # noqa: B018  (a library without it is no driver)
    except (OSError, AttributeError):
        raise MissingCapabilityError(
            f"{needs}: no NVIDIA driver (libcuda.so.1) is on this machine{instead}"
        ) from None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    status = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    if status:
        raise MissingCapabilityError(
            f"{needs}: the NVIDIA driver finds none (CUDA error {status}){instead}"
        )
    return f"sm{major.value}{minor.value}"
