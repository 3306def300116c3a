"""Copies between the host's pageable memory and the device by way of pinned memory.

An asynchronous copy reads or writes the host's memory when the stream reaches it. From pageable
memory the driver may copy beforehand, or not ("API synchronization behavior" of the CUDA Driver
API); from pinned memory it never does. So what is copied lies in pinned slots of our own until the
stream has passed it.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.python.cuda_driver import CudaDriver

# Some slots, so that the host fills one while the device reads another; pieces large enough for a
# bus's full speed.
SLOTS, SLOT_BYTES = 8, 2 << 20
Bytes = NDArray[np.uint8]


@dataclass
class _Slot:
    address: int
    memory: Bytes
    event: Any  # behind the last copy from or to it
    used: bool = False
    wanted: Bytes | None = None  # where the host wants what is in it


class Staging:
    """The slots. To be used in their context, by one thread at a time.

    Raises
    ------
    DeviceMemoryError
        If the host has no memory that can be pinned; nothing is left then.
    """

    def __init__(self, driver: CudaDriver, stream: Any) -> None:
        self._driver, self._stream = driver, stream
        self._slots: list[_Slot] = []
        self._next = 0
        with ExitStack() as undo:
            undo.callback(self.close)
            for _ in range(SLOTS):
                self._add_slot()
            undo.pop_all()

    def _add_slot(self) -> None:
        api = self._driver.api
        address = int(self._driver.call("cuMemHostAlloc", SLOT_BYTES, api.CU_MEMHOSTALLOC_PORTABLE))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * SLOT_BYTES).from_address(address))
        slot = _Slot(address, memory, None)
        self._slots.append(slot)
        flags = api.CUevent_flags.CU_EVENT_DISABLE_TIMING
        slot.event = self._driver.call("cuEventCreate", flags)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Queue a copy of a contiguous array, which may be changed at once."""
        data = array.reshape(-1).view(np.uint8)
        for begin in range(0, len(data), SLOT_BYTES):
            piece, slot = data[begin : begin + SLOT_BYTES], self._free_slot()
            slot.memory[: len(piece)] = piece
            self._queue("cuMemcpyHtoDAsync", slot, address + begin, slot.address, len(piece))

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Copy into a contiguous array, and wait for it."""
        data = array.reshape(-1).view(np.uint8)
        try:
            for begin in range(0, len(data), SLOT_BYTES):
                piece, slot = data[begin : begin + SLOT_BYTES], self._free_slot()
                slot.wanted = piece
                self._queue("cuMemcpyDtoHAsync", slot, slot.address, address + begin, len(piece))
            for _ in self._slots:
                self._free_slot()
        finally:
            for slot in self._slots:  # after an error: the array is the caller's, who is told
                slot.wanted = None

    def close(self) -> None:
        """Give the slots back. Nothing may be queued that uses them."""
        while self._slots:
            slot = self._slots.pop()
            if slot.event is not None:
                self._driver.attempt("cuEventDestroy", slot.event)
            self._driver.attempt("cuMemFreeHost", slot.address)

    def _queue(self, name: str, slot: _Slot, *arguments: int) -> None:
        self._driver.call(name, *arguments, self._stream)
        slot.used = True
        self._driver.call("cuEventRecord", slot.event, self._stream)

    def _free_slot(self) -> _Slot:
        """The oldest slot, when the stream has passed it and its content is where it was wanted."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        if slot.used:
            self._driver.call("cuEventSynchronize", slot.event)
            slot.used = False
        if slot.wanted is not None:
            slot.wanted[:] = slot.memory[: len(slot.wanted)]
            slot.wanted = None
        return slot
