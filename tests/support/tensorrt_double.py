"""TensorRT without TensorRT: a device that is host memory, and engines that are plain onnxruntime's
sessions on a bundle's graphs, run on what lies at the addresses that were set.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from glm_trt.engines.python.tensorrt_backend import TensorrtBackend
from glm_trt.engines.python.tensorrt_engine import Io
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.states import STATE_AXES

MAX_TOKENS = 24
NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
         "tensor(int8)": np.int8}  # fmt: skip


class HostRecorded:
    """See `RecordedWork`."""

    def __init__(self, replay: Callable[[], None]) -> None:
        self._replay = replay

    def __call__(self) -> None:
        self._replay()

    def close(self) -> None:
        pass


class HostDevice:
    """See `Device`. Memory that nothing was written to is NaN."""

    stream, target, name = 0, "sm00", "host"

    def __init__(self, can_record: bool = True, memory: int = 1 << 34) -> None:
        self.can_record, self.left = can_record, memory
        self.memory: dict[int, Any] = {}
        self.replayed = 0
        self._recording: list[Callable[[], None]] | None = None
        self.closed = False

    def allocate(self, size: int) -> int:
        raw = np.full(size + 256, 0xFF, np.uint8)
        address = -(-raw.ctypes.data // 256) * 256
        self.memory[address] = (raw, size)
        self.left -= size
        return address

    def current(self) -> nullcontext[None]:
        return nullcontext()

    def free(self, address: int) -> None:
        if address in self.memory:
            self.left += self.memory.pop(address)[1]

    def release(self, work: Callable[[], None]) -> None:
        work()

    def synchronize(self) -> None:
        pass

    def view(self, address: int, size: int) -> Any:
        inside = any(a <= address and address + size <= a + n for a, (_, n) in self.memory.items())
        assert inside, "beyond what was allocated"
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def queue(self, work: Callable[[], None]) -> None:
        if self._recording is None:
            work()
        else:
            self._recording.append(work)

    def upload(self, address: int, array: Any) -> None:
        assert self._recording is None and array.flags.c_contiguous
        self.view(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

    def download(self, address: int, array: Any) -> None:
        array.reshape(-1).view(np.uint8)[:] = self.view(address, array.nbytes)

    def copy(self, target: int, source: int, size: int) -> None:
        def work() -> None:
            self.view(target, size)[:] = self.view(source, size)

        self.queue(work)

    def clear(self, address: int, size: int) -> None:
        self.queue(lambda: self.view(address, size).fill(0))

    def free_bytes(self) -> int:
        return self.left

    def record(self, work: Callable[[], None]) -> HostRecorded | None:
        if not self.can_record:
            return None
        assert self._recording is None, "a recording was not ended"
        self._recording = recorded = []
        work()
        self._recording = None

        def replay() -> None:
            self.replayed += 1
            for item in recorded:
                item()

        return HostRecorded(replay)

    def abandon(self) -> None:
        self._recording = None

    def close(self) -> None:
        self.closed = True


class GraphEngine:
    """See `Engine`: the graph of a kind, with batch 1 and the capacity of engines."""

    scratch_bytes = 1000
    closed = False

    def __init__(
        self, bundle: Bundle, kind: str, device: HostDevice, marked: tuple[str, ...] = ()
    ) -> None:
        self.device, self.max_tokens, self.kind = device, MAX_TOKENS, kind
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        model = onnx.load(bundle.graph_path(kind, "float32"))
        known = {value.name: value for value in model.graph.value_info}
        model.graph.output.extend(known[name] for name in marked)
        self.session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        capacity = bundle.max_seq_len
        selected = min(bundle.config.index_topk, capacity)
        inputs = {x.name for x in self.session.get_inputs()}
        self.io = {
            x.name: Io(x.name, x.name in inputs, np.dtype(NUMPY[x.type]),
                       self.fixed(x, capacity, selected))
            for x in (*self.session.get_inputs(), *self.session.get_outputs())
        }  # fmt: skip

    @staticmethod
    def fixed(value: Any, capacity: int, selected: int) -> tuple[int, ...]:
        base = value.name.removesuffix("_out")
        if base in STATE_AXES:
            sizes = {"batch": 1, "capacity": capacity}
            pairs = zip(value.shape, STATE_AXES[base], strict=True)
            return tuple(sizes.get(axis, size) for size, axis in pairs)
        if base in ("past_lengths", "lengths"):
            return (1,)
        if [type(size) for size in value.shape] == [str, int]:
            return (-1, value.shape[1])  # of all tokens: what experts take and give
        if base in ("topk_indices", "shared_indices"):
            return (1, -1, selected)
        opened = [1, -1]
        return tuple(
            opened[i] if i < 2 and isinstance(size, str) else size
            for i, size in enumerate(value.shape)
        )

    def execution(self, profile: int, scratch: int) -> GraphExecution:
        return GraphExecution(self, profile)

    def close(self) -> None:
        self.closed = True


class GraphExecution:
    """See `Execution`; it refuses what TensorRT would."""

    def __init__(self, engine: GraphEngine, profile: int) -> None:
        self.engine, self.profile = engine, profile
        self.addresses: dict[str, int] = {}
        self.tokens: dict[str, int] = {}

    def close(self) -> None:
        pass

    def set_address(self, name: str, address: int) -> None:
        assert name in self.engine.io and address % 256 == 0, (name, address)
        self.addresses[name] = address

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        wanted = self.engine.io[name].shape
        (tokens,) = [b for a, b in zip(wanted, shape, strict=True) if a < 0]
        low, high = ((1, 1), (2, self.engine.max_tokens))[self.profile]
        assert low <= tokens <= high, "outside the profile"
        self.tokens[name] = tokens

    def run(self) -> None:
        engine = self.engine
        missing = engine.io.keys() - self.addresses.keys()
        assert not missing, f"{engine.kind}: no address of {missing}"
        opened = {x.name for x in engine.io.values() if x.is_input and -1 in x.shape}
        (tokens,) = {self.tokens[name] for name in opened}
        addresses = dict(self.addresses)
        engine.device.queue(lambda: self.work(addresses, tokens))

    def work(self, addresses: dict[str, int], tokens: int) -> None:
        device, io = self.engine.device, self.engine.io.values()
        feeds = {
            x.name: device.view(addresses[x.name], x.bytes(tokens)).view(x.dtype)
            .reshape(x.shape_for(tokens)).copy()
            for x in io if x.is_input
        }  # fmt: skip
        names = [x.name for x in io if not x.is_input]
        for name, array in zip(names, self.engine.session.run(names, feeds), strict=True):
            x = self.engine.io[name]
            assert array.shape == x.shape_for(tokens) and array.dtype == x.dtype, name
            contiguous = np.ascontiguousarray(array)
            target = device.view(addresses[name], array.nbytes)
            target[:] = contiguous.reshape(-1).view(np.uint8)


class GraphEngines:
    """See `Engines`."""

    def __init__(self, bundle: Bundle, device: HostDevice) -> None:
        self._bundle, self._device = bundle, device
        self.by_kind = {kind: GraphEngine(bundle, kind, device) for kind in bundle.kinds}

    def marked(self, kind: str, names: tuple[str, ...]) -> GraphEngine:
        return GraphEngine(self._bundle, kind, self._device, names)

    def close(self) -> None:
        pass


def open_double(bundle: Bundle, device: HostDevice) -> TensorrtBackend:
    return TensorrtBackend(bundle, GraphEngines(bundle, device), "float32", device)
