"""The first GPU: its context, the one stream that all is queued on, and what lives there."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from glm_trt.engines.build.flavours import present_target
from glm_trt.engines.python.cuda_driver import CudaDriver
from glm_trt.engines.python.device import Array
from glm_trt.engines.python.staging import Staging
from glm_trt.model.errors import GlmTrtError


class Gpu:
    """The first GPU through the CUDA driver; see `Device`.

    Every method may be called from any thread: it makes the context current there while it runs.
    The collector may free what lives here in any thread, and at any time: while the stream is
    recorded, which forbids that, it is put off.

    Parameters
    ----------
    what : needs it; for the error.
    extra : of this package, that has the bindings; for the error.

    Raises
    ------
    MissingCapabilityError
        If there is no driver, no GPU, no bindings, or no memory. Nothing is left behind then.
    """

    def __init__(self, what: str, extra: str = "tensorrt") -> None:
        self.target = present_target(what, instead="")
        self._driver = CudaDriver(what, extra)
        self._lock = threading.RLock()  # of what follows; a finalizer may come in its midst
        self._entered = threading.local()
        self._memory: set[int] = set()
        self._recorded: dict[int, Any] = {}
        self._is_recording = False
        self._put_off: list[Callable[[], None]] = []
        self._closed = False
        call, api = self._driver.call, self._driver.api
        with ExitStack() as undo:
            call("cuInit", 0)
            self._device = call("cuDeviceGet", 0)
            raw = bytes(call("cuDeviceGetName", 256, self._device)).split(b"\0")[0]
            self.name = re.sub(r"[^a-z0-9]+", "-", raw.decode(errors="ignore").lower()).strip("-")
            self._context = call("cuDevicePrimaryCtxRetain", self._device)
            undo.callback(self._driver.attempt, "cuDevicePrimaryCtxRelease", self._device)
            with self.current(), ExitStack() as inside:  # what is undone while it is current
                self._stream = call("cuStreamCreate", api.CUstream_flags.CU_STREAM_NON_BLOCKING)
                inside.callback(self._driver.attempt, "cuStreamDestroy", self._stream)
                self._staging = Staging(self._driver, self._stream)
                inside.pop_all()
            undo.pop_all()
        self.stream = int(self._stream)

    @contextmanager
    def current(self) -> Iterator[None]:
        """As in `Device`."""
        depth = getattr(self._entered, "depth", 0)
        if not depth:
            self._driver.call("cuCtxPushCurrent", self._context)
        self._entered.depth = depth + 1
        try:
            yield
        finally:
            self._entered.depth = depth
            if not depth:
                self._driver.attempt("cuCtxPopCurrent")

    def allocate(self, size: int) -> int:
        """As in `Device`."""
        with self.current(), self._lock:
            address = int(self._driver.call("cuMemAlloc", max(size, 1)))
            self._memory.add(address)
            return address

    def free(self, address: int) -> None:
        """As in `Device`."""
        self.release(lambda: self._free(address))

    def _free(self, address: int) -> None:
        with self._lock:
            if address in self._memory:
                self._memory.remove(address)
                self._driver.attempt("cuMemFree", address)

    def upload(self, address: int, array: Array) -> None:
        """As in `Device`."""
        with self.current(), self._lock:
            self._staging.upload(address, array)

    def download(self, address: int, array: Array) -> None:
        """As in `Device`."""
        with self.current(), self._lock:
            self._staging.download(address, array)

    def copy(self, target: int, source: int, size: int) -> None:
        """As in `Device`."""
        with self.current():
            self._driver.call("cuMemcpyDtoDAsync", target, source, size, self._stream)

    def clear(self, address: int, size: int) -> None:
        """As in `Device`."""
        with self.current():
            self._driver.call("cuMemsetD8Async", address, 0, size, self._stream)

    def synchronize(self) -> None:
        """As in `Device`."""
        with self.current():
            self._driver.call("cuStreamSynchronize", self._stream)

    def free_bytes(self) -> int:
        """As in `Device`."""
        with self.current():
            return int(self._driver.call("cuMemGetInfo")[0])

    def release(self, work: Callable[[], None]) -> None:
        """As in `Device`."""
        with self._lock:
            if self._closed:
                return  # everything is gone already
            if self._is_recording:  # here, as any other thread waits for the lock
                self._put_off.append(work)
                return
            with self.current():
                work()

    def record(self, work: Callable[[], None]) -> Recorded | None:
        """As in `Device`: a CUDA graph."""
        with self.current(), self._lock:
            try:
                executable = self._capture(work)
            except GlmTrtError as error:
                # Of a capture that was broken off, whatever error came of it on the way.
                if self._driver.says_cannot_be_recorded(error):
                    return None
                raise
            self._recorded[int(executable)] = executable
            return Recorded(self, executable)

    def _capture(self, work: Callable[[], None]) -> Any:
        """The executable graph of what `work` queues."""
        call, api = self._driver.call, self._driver.api
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        thrown: GlmTrtError | None = None
        self._is_recording = True
        try:
            call("cuStreamBeginCapture", self._stream, mode)
            try:
                work()
            except GlmTrtError as error:
                thrown = error
            except BaseException:
                self.abandon()
                raise
            graph = call("cuStreamEndCapture", self._stream)
            try:
                if thrown is not None:
                    raise thrown
                return call("cuGraphInstantiate", graph, 0)
            finally:
                self._driver.attempt("cuGraphDestroy", graph)
        finally:
            self._end_recording()

    def _end_recording(self) -> None:
        """Do what was put off."""
        self._is_recording = False
        while self._put_off:
            self._put_off.pop(0)()

    def abandon(self) -> None:
        """As in `Device`: Ctrl-C may come between any two lines of `record`."""
        with self.current():
            status = self._driver.call("cuStreamIsCapturing", self._stream)
            none = self._driver.api.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
            if status != none:
                with suppress(GlmTrtError):  # a capture that is invalid ends with an error
                    graph = self._driver.call("cuStreamEndCapture", self._stream)
                    self._driver.attempt("cuGraphDestroy", graph)
            self._end_recording()

    def launch(self, executable: Any) -> None:
        """Queue what was recorded."""
        with self.current():
            self._driver.call("cuGraphLaunch", executable, self._stream)

    def forget(self, key: int) -> None:
        """Destroy what was recorded."""
        with self._lock:
            executable = self._recorded.pop(key, None)
            if executable is not None:
                self._driver.attempt("cuGraphExecDestroy", executable)

    def close(self) -> None:
        """As in `Device`: graphs first, the context last."""
        with self._lock:
            if self._closed:
                return
            with self.current():
                # Whatever it answers: nothing may use what is freed now.
                self._driver.attempt("cuStreamSynchronize", self._stream)
                for key in list(self._recorded):
                    self.forget(key)
                for address in list(self._memory):
                    self._free(address)
                self._staging.close()
                self._driver.attempt("cuStreamDestroy", self._stream)
            self._driver.attempt("cuDevicePrimaryCtxRelease", self._device)
            self._closed = True


class Recorded:
    """What was recorded: a call queues it once more. `close`, or the collector, destroys it."""

    def __init__(self, gpu: Gpu, executable: Any) -> None:
        self._gpu, self._executable = gpu, executable
        key = int(executable)
        self.close = weakref.finalize(self, gpu.release, lambda: gpu.forget(key))
        self.close.atexit = False  # the process ends, and the driver with it

    def __call__(self) -> None:
        """Queue it."""
        self._gpu.launch(self._executable)
