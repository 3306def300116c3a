"""Calls of the CUDA driver through NVIDIA's bindings, with errors that say which call it was.

`cuda.core` has objects with lifetimes of their own. It is not used: one that the collector frees in
the midst of a recording would break the recording off, and the order of their ends would be the
collector's.
"""

from __future__ import annotations

from typing import Any

from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.model.requirements import require

# cudaError_enum has the errors of captures in one range, from ..._UNSUPPORTED to ..._WRONG_THREAD.
_FIRST_OF_CAPTURES, _LAST_OF_CAPTURES = 900, 908


class DriverError(GlmTrtError):
    """A call that failed.

    Parameters
    ----------
    name : of the call.
    result : its CUresult.
    """

    def __init__(self, name: str, result: Any) -> None:
        super().__init__(f"{name}: {result.name}")
        self.result = result


class DeviceMemoryError(MissingCapabilityError):
    """The device, or the host's pinned memory, has no room left."""


class CudaDriver:
    """The functions of the driver.

    Parameters
    ----------
    what : needs it; for the error.
    extra : of this package, that has the bindings; for the error.

    Raises
    ------
    MissingCapabilityError
        If the bindings are not there.
    """

    def __init__(self, what: str, extra: str) -> None:
        require(what, extra, "cuda.bindings.driver")
        from cuda.bindings import driver

        self.api = driver

    def call(self, name: str, *arguments: Any) -> Any:
        """What the function of that name gives: nothing, a value, or a tuple of several.

        Raises
        ------
        DeviceMemoryError
            If there is no memory for it.
        DriverError
            If it fails otherwise.
        """
        result, *values = getattr(self.api, name)(*arguments)
        if result == self.api.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceMemoryError(f"the GPU has too little memory: {name}: {result.name}")
        if result != self.api.CUresult.CUDA_SUCCESS:
            raise DriverError(name, result)
        return values[0] if len(values) == 1 else tuple(values)

    def attempt(self, name: str, *arguments: Any) -> None:
        """Call it whatever it answers: an error of earlier work comes back from every later call,
        and must not hide itself behind what cleans up.
        """
        getattr(self.api, name)(*arguments)

    @staticmethod
    def says_cannot_be_recorded(error: BaseException) -> bool:
        """Whether the stream's capture was refused, not the work itself."""
        if not isinstance(error, DriverError):
            return False
        return _FIRST_OF_CAPTURES <= int(error.result) <= _LAST_OF_CAPTURES
