"""The stand-in driver in this process: a context, a stream, and memory for what tests give it."""

from __future__ import annotations

import atexit
import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stand_in_build import build_driver

LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint,
    ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip
NON_BLOCKING = 1


class StandIn:
    """What `libcuda.so.1` is from now on, for every library of this process.

    `launched` does what kernels do: SHA-256 of the image, entry, grid, threads, shared memory,
    addresses of the arguments; 0 where all is well. Without it the executor does.
    """

    def __init__(self, launched: Callable[..., int] | None = None) -> None:
        self.library = ctypes.CDLL(str(build_driver()), ctypes.RTLD_GLOBAL)
        self.library.standInViolations.restype = ctypes.c_size_t
        self._callback = LAUNCH(launched) if launched else None
        self.library.standInOnLaunch(self._callback)
        self._context = ctypes.c_void_p()
        self.stream = ctypes.c_void_p()
        self.call("cuInit", 0)
        self._open()
        atexit.register(self._close)

    def call(self, function: str, *arguments: Any) -> None:
        """One of the driver's functions; raises RuntimeError with the name of its error."""
        result = getattr(self.library, function)(*arguments)
        if result:
            name = ctypes.c_char_p()
            self.library.cuGetErrorName(result, ctypes.byref(name))
            raise RuntimeError(f"{function}: {(name.value or b'?').decode()}")

    def configure(self, **settings: Any) -> None:
        """Settings of README.md, such as `target="sm90"`."""
        values = {name: str(value) for name, value in settings.items()}
        self.library.standInConfigure(json.dumps(values).encode())

    def violations(self) -> list[str]:
        """What no right program does, so far; it is forgotten."""
        buffer = ctypes.create_string_buffer(1 << 16)
        self.library.standInViolations(buffer, len(buffer))
        return buffer.value.decode().splitlines()

    def renew_context(self) -> None:
        """Another context in place of this one, of which nothing is left."""
        self._close()
        self._open()

    def allocate(self, size: int) -> int:
        """Memory of exactly that size (bytes), at least 1, with guards beside it."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, host: int, size: int) -> None:
        """Queue a copy; the host's memory is read when something waits."""
        self.call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(host),
                  ctypes.c_size_t(size), self.stream)  # fmt: skip

    def download(self, host: int, address: int, size: int) -> None:
        """Queue a copy; the host has it when something has waited."""
        self.call("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(host), ctypes.c_uint64(address),
                  ctypes.c_size_t(size), self.stream)  # fmt: skip

    def synchronize(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def _open(self) -> None:
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), 0)
        self.call("cuCtxSetCurrent", self._context)
        self.call("cuStreamCreate", ctypes.byref(self.stream), NON_BLOCKING)

    def _close(self) -> None:
        self.call("cuStreamDestroy_v2", self.stream)
        self.call("cuDevicePrimaryCtxRelease_v2", 0)


def report_of(path: Path) -> list[str]:
    """The violations that other processes wrote to STAND_IN_REPORT."""
    return path.read_text().splitlines() if path.exists() else []
