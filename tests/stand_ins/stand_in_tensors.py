"""Tensors of the host in the stand-in's memory, for as long as a plugin works on them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from stand_in_device import StandIn
from torch import Tensor


class OnDevice:
    """Tensors of the host in the stand-in's memory; those that share memory here share it there.

    Where the block ends they are gone again, and what the driver found wrong is an AssertionError.
    """

    def __init__(
        self, device: StandIn, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        self._device = device
        self._inputs, self._outputs = inputs, outputs
        self._taken: list[int] = []
        self._addresses: dict[int, int] = {}

    def __enter__(self) -> OnDevice:
        for tensor in (*self._inputs, *self._outputs):
            host = tensor.data_ptr()
            if host not in self._addresses and tensor.nbytes:
                self._addresses[host] = self.take(tensor.nbytes, host % 16)
                self._device.upload(self._addresses[host], host, tensor.nbytes)
        return self

    def take(self, size: int, misalignment: int) -> int:
        """Memory that ends where an allocation does, so far from a multiple of 16."""
        self._taken.append(self._device.allocate(size + misalignment))
        return self._taken[-1] + misalignment

    def address(self, tensor: Tensor) -> int:
        """Where it is on the device; 0 if it is empty."""
        return self._addresses.get(tensor.data_ptr(), 0) if tensor.nbytes else 0

    def bring_back(self) -> None:
        """Wait, and fill the outputs; inputs that are none of them must be as they were."""
        written = {tensor.data_ptr() for tensor in self._outputs}
        read = [tensor for tensor in self._inputs if tensor.data_ptr() not in written]
        copies = [torch.empty_like(tensor) for tensor in read]
        for source, target in (*((t, t) for t in self._outputs), *zip(read, copies, strict=True)):
            if source.nbytes:
                self._device.download(target.data_ptr(), self.address(source), source.nbytes)
        try:
            self._device.synchronize()
        except RuntimeError:
            return  # the fault of a kernel: it is told when the block ends
        for i, (source, copy) in enumerate(zip(read, copies, strict=True)):
            same = torch.equal(_bytes(source), _bytes(copy))
            assert same, f"the kernels wrote to input {i} of those that are no outputs"

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        found = self._device.violations()  # and the fault, which every call would have
        with suppress(RuntimeError):
            self._device.synchronize()
        for address in self._taken:
            self._device.free(address)
        found += self._device.violations()
        if error is None:
            assert not found, "\n".join(found)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
