"""What a GPU is to the backend: memory, and one stream that everything is queued on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from numpy.typing import NDArray

from glm_trt.model.errors import MissingCapabilityError

Array = NDArray[Any]
ALIGNMENT = 256


class RecordedWork(Protocol):
    """Work that was recorded. It holds the addresses that it was recorded with."""

    def __call__(self) -> None:
        """Queue it once more."""
        ...

    def close(self) -> Any:
        """Destroy it; again does nothing."""
        ...


class Device(Protocol):
    """A GPU, or what stands for one in tests. Sizes are in bytes; copies are queued.

    Its methods may be called from any thread, by one at a time. `name` is of its model, in lower
    case letters, digits and hyphens.
    """

    stream: int
    target: str
    name: str

    def current(self) -> AbstractContextManager[None]:
        """Within it this thread may call what works on the device by itself, as TensorRT does."""
        ...

    def allocate(self, size: int) -> int:
        """Memory of that size, aligned to 256 bytes."""
        ...

    def free(self, address: int) -> None:
        """Give it back; again, or after closing, does nothing."""
        ...

    def release(self, work: Callable[[], None]) -> None:
        """Do what frees something, in the device's context, in whatever thread; after a recording
        that is going on; not at all after closing, which has freed everything.
        """
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

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""
        ...

    def free_bytes(self) -> int:
        """Memory that is left."""
        ...

    def record(self, work: Callable[[], None]) -> RecordedWork | None:
        """What queues again all that `work` queues, without asking the host each time; None where
        it cannot be recorded. `work` itself is not done; an error of its own is passed on.
        """
        ...

    def abandon(self) -> None:
        """End a recording that was broken off, if there is one: what is queued is done again."""
        ...

    def close(self) -> None:
        """Give back all that was allocated and recorded, and what the device itself holds."""
        ...


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
        self.addresses: dict[str, int] = {}
        # With the object at the latest: a session is not closed, it is let go.
        self.free = weakref.finalize(self, _free, device, self.addresses)
        self.free.atexit = False  # the process ends, and the driver with it
        try:
            for name, size in sizes.items():
                self.addresses[name] = device.allocate(_aligned(size))
        except BaseException:
            self.free()
            raise


def _free(device: Device, addresses: dict[str, int]) -> None:
    for address in addresses.values():
        device.free(address)
    addresses.clear()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
