"""Programs that use a GPU as the backend does, for `test_gpu.py` and for a real one:

    python tests/engines/python/gpu_programs.py [NAME ...]

A line for each; the exit code is 1 if one is wrong.
"""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import numpy as np

from glm_trt.engines.python.cuda_driver import CudaDriver, DeviceMemoryError
from glm_trt.engines.python.device import DeviceMemory
from glm_trt.engines.python.gpu import Gpu
from glm_trt.engines.python.tensorrt_engine import TensorrtExecution
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError

# Of no bytes more than a slot, of several slots, and of more than there are.
SIZES = (1, 4097, 5 << 20, 20 << 20)


@contextmanager
def gpu() -> Iterator[Gpu]:
    """The GPU; nothing of it is left afterwards."""
    opened = Gpu("this program")
    try:
        yield opened
    finally:
        opened.close()
        opened.close()


def numbers(size: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 255, size, np.uint8)


def in_thread(work: Callable[[], Any]) -> Any:
    """What it gives in a thread of its own."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def copies() -> None:
    """What is uploaded may be changed at once; what is downloaded is there."""
    with gpu() as device:
        for size in SIZES:
            memory = DeviceMemory(device, {"a": size, "b": size}, "copies")
            a, b = memory.addresses.values()
            for seed in range(3):
                given = numbers(size, seed)
                kept = given.copy()
                device.upload(a, given)
                given[:] = 0xEE
                device.copy(b, a, size)
                found = np.zeros(size, np.uint8)
                device.download(b, found)
                assert np.array_equal(found, kept), (size, seed)
            device.clear(b, size)
            device.download(b, found)
            assert not found.any()
            memory.free()
            memory.free()


def threads() -> None:
    """Any thread may call, and the collector may free in any."""
    with gpu() as device:
        memory = in_thread(lambda: DeviceMemory(device, {"a": 1 << 16}, "threads"))
        address, given = memory.addresses["a"], numbers(1 << 16)

        def there_and_back() -> Any:
            device.upload(address, given)
            found = np.zeros(1 << 16, np.uint8)
            device.download(address, found)
            return found

        assert np.array_equal(in_thread(there_and_back), given)
        assert in_thread(device.free_bytes) > 0
        recorded = in_thread(lambda: device.record(lambda: device.clear(address, 1 << 16)))
        assert recorded is not None
        in_thread(recorded)
        in_thread(recorded.close)
        held = [memory]
        del memory
        in_thread(held.clear)
        driver = CudaDriver("this program", "tensorrt")
        assert not int(driver.call("cuCtxGetCurrent")), "a context was left current"


def recording() -> None:
    """A recording is replayed with what lies at its addresses then."""
    with gpu() as device:
        memory = DeviceMemory(device, {"a": 4096, "b": 4096}, "recording")
        a, b = memory.addresses.values()
        recorded = device.record(lambda: device.copy(b, a, 4096))
        assert recorded is not None
        for seed in range(3):
            given, found = numbers(4096, seed), np.zeros(4096, np.uint8)
            device.upload(a, given)
            recorded()
            device.download(b, found)
            assert np.array_equal(found, given)
        del recorded  # which destroys it


def errors_of_ours() -> None:
    """An error in what is recorded is passed on; what cannot be recorded is none."""
    with gpu() as device:
        memory = DeviceMemory(device, {"a": 64}, "errors")
        for error in (GlmTrtError("ours"), ValueError("ours"), KeyboardInterrupt()):

            def fails(error: BaseException = error) -> None:
                device.clear(memory.addresses["a"], 64)
                raise error

            try:
                device.record(fails)
            except type(error) as found:
                assert found is error
            else:
                raise AssertionError(f"{error!r} was hidden")
        assert device.record(lambda: device.free(device.allocate(64))) is None
        assert device.record(device.synchronize) is None
        assert device.record(lambda: device.clear(memory.addresses["a"], 64)) is not None


def freed_while_recording() -> None:
    """What the collector frees in the midst of a recording does not break it off."""
    with gpu() as device:
        kept = DeviceMemory(device, {"a": 64}, "kept")
        free = device.free_bytes()
        old = device.record(lambda: device.clear(kept.addresses["a"], 64))
        size = 1 << 26  # more than what a graph takes
        held: list[Any] = [DeviceMemory(device, {"b": size}, "let go"), old]
        del old

        def work() -> None:
            device.clear(kept.addresses["a"], 64)
            held.clear()
            gc.collect()

        recorded = device.record(work)
        assert recorded is not None
        recorded()
        assert device.free_bytes() > free - size, "what was put off is freed after the recording"


def interrupted() -> None:
    """Ctrl-C may come before a recording begins or as it ends: then it is abandoned, and what was
    put off is done.
    """
    with gpu() as device:
        free = device.free_bytes()
        held = [DeviceMemory(device, {"a": 1 << 26}, "let go")]
        device._is_recording = True
        held.clear()
        device.abandon()
        assert device.free_bytes() >= free
        DeviceMemory(device, {"a": 64}, "frees at once again").free()


def too_little_memory() -> None:
    """A failure halfway gives everything back, and says that the machine lacks it."""
    with gpu() as device:
        free = device.free_bytes()
        device.free_bytes = lambda: 1 << 60  # type: ignore[method-assign]
        try:
            DeviceMemory(device, {"a": 1 << 20, "b": 1 << 45}, "too much")
        except MissingCapabilityError as error:
            assert "too little memory" in str(error) and error.exit_code == 3
        else:
            raise AssertionError("there was so much")
        del device.free_bytes
        assert device.free_bytes() == free


def failed_open() -> None:
    """Whichever call fails while a device is opened, the error says so, and nothing is left."""
    real, count = CudaDriver.call, 0

    def open_with_failure(at: int) -> bool:
        """Whether it came so far."""
        nonlocal count
        count = 0

        def call(driver: CudaDriver, name: str, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise DeviceMemoryError(f"no memory for {name}")
            return real(driver, name, *arguments)

        CudaDriver.call = call  # type: ignore[method-assign]
        try:
            device = Gpu("this program")
        except MissingCapabilityError as error:
            assert str(error).startswith("no memory for cu")
            return True
        finally:
            CudaDriver.call = real  # type: ignore[method-assign]
        device.close()
        return False

    at = 1
    while open_with_failure(at):
        at += 1
    assert at > 20


def closed_before() -> None:
    """What outlives the device does nothing more."""
    with gpu() as device:
        memory = DeviceMemory(device, {"a": 64}, "what is let go")
        recorded = device.record(lambda: device.clear(memory.addresses["a"], 64))
    assert recorded is not None
    recorded.close()
    memory.free()


def failed_device() -> None:
    """Where waiting fails, as it does after the fault of a kernel, all is given back even so."""
    with gpu() as device:
        held = TensorrtExecution(object(), device, "a block")
        gone = held._held

        def fails() -> None:
            raise GlmTrtError("cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS")

        device.synchronize = fails  # type: ignore[method-assign]
        held.close()
        assert not gone


def again() -> None:
    """One device after another, as tests and servers do: the same memory is free."""
    with gpu() as device:
        free = device.free_bytes()
    for _ in range(3):
        with gpu() as device:
            DeviceMemory(device, {"a": 1 << 24}, "again")
            device.record(lambda: None)
    with gpu() as device:
        assert device.free_bytes() >= free


PROGRAMS: dict[str, Callable[[], None]] = {
    program.__name__: program
    for program in (copies, threads, recording, errors_of_ours, freed_while_recording,
                    interrupted, too_little_memory, failed_open, closed_before, failed_device,
                    again)
}  # fmt: skip


def main() -> int:
    """Run them."""
    wrong = 0
    for name in sys.argv[1:] or PROGRAMS:
        try:
            PROGRAMS[name]()
        except Exception:
            wrong += 1
            print(f"{name}: WRONG: {traceback.format_exc()}")
        else:
            print(f"{name}: ok", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
