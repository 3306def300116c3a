"""The memory that engines work on, and the one stream that everything is queued on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from numpy.typing import NDArray

from glm_trt.engines.tensorrt_flavours import present_target
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.model.requirements import require

Array = NDArray[Any]
ALIGNMENT = 256


class Device(Protocol):
    """A GPU, or what stands for one in tests. Sizes are in bytes; copies are queued."""

    stream: int
    target: str

    def allocate(self, size: int) -> int:
        """Memory of that size, aligned to 256 bytes."""
        ...

    def free(self, address: int) -> None:
        """Give it back."""
        ...

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array there; it may be changed at once."""
        ...

    def download(self, address: int, array: Array) -> None:
        """Copy from there into a contiguous array, and wait for it."""
        ...

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy within the device."""
        ...

    def clear(self, address: int, size: int) -> None:
        """Fill with zeros."""
        ...

    def free_bytes(self) -> int:
        """Memory that is left."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """What queues again all that `work` queues, without asking the host each time; None where
        it cannot be recorded. `work` itself is not done.
        """
        ...

    def abandon(self) -> None:
        """End a recording that was broken off, if there is one: what is queued is done again."""
        ...

    def close(self) -> None:
        """Give back what the device itself holds."""
        ...


class Gpu:
    """The first GPU, through NVIDIA's bindings of the CUDA driver; see `Device`.

    Parameters
    ----------
    what : needs it; for the error.
    extra : of this package, that has the bindings; for the error.

    Raises
    ------
    MissingCapabilityError
        If there is no driver, no GPU or no bindings.
    """

    def __init__(self, what: str, extra: str = "tensorrt") -> None:
        self.target = present_target(what, instead="")
        require(what, extra, "cuda.bindings.driver")
        from cuda.bindings import driver

        self._driver = driver
        (self._device,) = self._call("cuDeviceGet", 0)
        (context,) = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._call("cuCtxSetCurrent", context)
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        (self._stream,) = self._call("cuStreamCreate", flags)
        self.stream = int(self._stream)
        self._closed = False

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        result, *values = getattr(self._driver, name)(*arguments)
        if result != self._driver.CUresult.CUDA_SUCCESS:
            raise GlmTrtError(f"{name}: {result.name}")
        return tuple(values)

    def allocate(self, size: int) -> int:
        """As in `Device`."""
        (address,) = self._call("cuMemAlloc", max(size, 1))
        return int(address)

    def free(self, address: int) -> None:
        """As in `Device`; after closing, the context has taken its memory with it."""
        if not self._closed:
            self._call("cuMemFree", address)

    def upload(self, address: int, array: Array) -> None:
        """As in `Device`: the driver copies pageable memory before it returns."""
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self._stream)

    def download(self, address: int, array: Array) -> None:
        """As in `Device`."""
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)
        self._call("cuStreamSynchronize", self._stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """As in `Device`."""
        self._call("cuMemcpyDtoDAsync", target, source, size, self._stream)

    def clear(self, address: int, size: int) -> None:
        """As in `Device`."""
        self._call("cuMemsetD8Async", address, 0, size, self._stream)

    def free_bytes(self) -> int:
        """As in `Device`."""
        return int(self._call("cuMemGetInfo")[0])

    def record(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """As in `Device`: a CUDA graph."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        try:
            self._call("cuStreamBeginCapture", self._stream, mode)
            try:
                work()
            finally:
                (graph,) = self._call("cuStreamEndCapture", self._stream)
            (executable,) = self._call("cuGraphInstantiate", graph, 0)
        except GlmTrtError:
            return None
        return lambda: self._launch(executable)

    def abandon(self) -> None:
        """As in `Device`: Ctrl-C may come between any two lines of `record`."""
        (status,) = self._call("cuStreamIsCapturing", self._stream)
        if status != self._driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE:
            with suppress(GlmTrtError):  # a capture that is invalid ends with an error
                self._call("cuStreamEndCapture", self._stream)

    def _launch(self, executable: Any) -> None:
        self._call("cuGraphLaunch", executable, self._stream)

    def close(self) -> None:
        """As in `Device`."""
        self._closed = True
        self._call("cuStreamDestroy", self._stream)
        self._call("cuDevicePrimaryCtxRelease", self._device)


class DeviceMemory:
    """Named device memory, accounted before it is taken; `free` gives all of it back.

    Raises
    ------
    MissingCapabilityError
        If it is more than the device has left; nothing is taken then.
    """

    def __init__(self, device: Device, sizes: dict[str, int], what: str) -> None:
        needed, left = sum(map(_aligned, sizes.values())), device.free_bytes()
        if needed > left:
            largest = sorted(sizes.items(), key=lambda item: -item[1])[:4]
            parts = ", ".join(f"{name} {size:,}" for name, size in largest)
            raise MissingCapabilityError(
                f"the GPU has too little memory for {what}: {needed:,} bytes are needed (the "
                f"largest: {parts}), {left:,} are free; a smaller --max-seq-len, fewer rows or a "
                "larger GPU help"
            )
        self.sizes = sizes
        self.addresses = {name: device.allocate(_aligned(size)) for name, size in sizes.items()}
        # With the object at the latest: a session is not closed, it is let go.
        self.free = weakref.finalize(self, _free, device, self.addresses)


def _free(device: Device, addresses: dict[str, int]) -> None:
    for address in addresses.values():
        device.free(address)
    addresses.clear()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
