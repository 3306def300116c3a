"""Engines of block kinds as the TensorRT backend sees them, and those of TensorRT itself."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from glm_trt.engines.build import build_marked
from glm_trt.engines.bundle import Bundle, BundleBlock
from glm_trt.engines.python.device import Device
from glm_trt.engines.tensorrt_flavours import Flavour, load_flavour
from glm_trt.model.errors import BundleError, GlmTrtError, MissingCapabilityError

PLUGIN_LIBRARY = "plugins/libglm_trt_plugins.so"


@dataclass(frozen=True)
class Io:
    """An input or output. `shape`: −1 where it is open, which is the number of tokens."""

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def bytes(self, tokens: int) -> int:
        """Its size for that many tokens."""
        return math.prod(tokens if size < 0 else size for size in self.shape) * self.dtype.itemsize

    def shape_for(self, tokens: int) -> tuple[int, ...]:
        """Its shape for that many tokens."""
        return tuple(tokens if size < 0 else size for size in self.shape)


class Execution(Protocol):
    """One block on one optimisation profile: its addresses stay until they are set anew."""

    def set_address(self, name: str, address: int) -> None:
        """Where an input or output lies."""
        ...

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Of an input with an open axis."""
        ...

    def run(self) -> None:
        """Queue a run on the device's stream."""
        ...


class Engine(Protocol):
    """The engine of a kind: profile 0 takes one token, profile 1 from 2 to `max_tokens`."""

    io: dict[str, Io]
    max_tokens: int
    scratch_bytes: int

    def execution(self, profile: int, scratch: int) -> Execution:
        """An execution that works in `scratch`, which those that run in turns may share."""
        ...


class Stage:
    """One block ready to run, on either profile; what changes from run to run is set then."""

    def __init__(
        self, block: BundleBlock, engine: Engine, addresses: dict[str, int], scratch: int
    ) -> None:
        self.block, self.engine = block, engine
        self._executions: list[Execution] = []
        for profile in range(1 if engine.max_tokens == 1 else 2):
            execution = engine.execution(profile, scratch)
            for name in engine.io.keys() & addresses.keys():
                execution.set_address(name, addresses[name])
            self._executions.append(execution)
        self._open = [x for x in engine.io.values() if x.is_input and -1 in x.shape]
        for x in self._open:
            self._executions[0].set_shape(x.name, x.shape_for(1))

    def run(self, tokens: int, addresses: dict[str, int]) -> None:
        """Queue a run over `tokens`, with these addresses of what has no fixed one."""
        execution = self._executions[tokens > 1]
        if tokens > 1:
            for x in self._open:
                execution.set_shape(x.name, x.shape_for(tokens))
        for name, address in addresses.items():
            if name in self.engine.io:
                execution.set_address(name, address)
        execution.run()


def load_engines(bundle: Bundle, backend: str, dtype: str, device: Device) -> dict[str, Engine]:
    """The bundle's engines for the device, by kind; each plan is read once.

    Raises
    ------
    BundleError
        If an engine is missing, of another TensorRT version, or cannot be loaded.
    MissingCapabilityError
        If TensorRT itself is missing, or does not run on such a GPU.
    """
    flavour = load_flavour(backend)
    if flavour.ahead_of_time and device.target not in flavour.known_targets():
        raise MissingCapabilityError(
            f"backend {backend!r}: TensorRT-RTX {flavour.version} does not run on a GPU of "
            f"{device.target}, only on {', '.join(flavour.known_targets())}; the backend tensorrt "
            "is for data-centre GPUs"
        )
    entries = _entries(bundle, backend, dtype, device)
    missing = [kind for kind in bundle.kinds if kind not in entries]
    if missing:
        raise BundleError(
            f"{bundle.directory}: no engine of {missing[0]} in {dtype} for {device.target} "
            f"({backend}); build it: glm-trt build {bundle.directory} --backend {backend} "
            f"--target {device.target}"
        )
    for kind, entry in entries.items():
        if entry["backend_version"] != flavour.version:
            raise BundleError(
                f"{bundle.directory / entry['file']}: engine of {kind}: built with {backend} "
                f"{entry['backend_version']}, this is {flavour.version}; build it again"
            )
    runtime = _runtime(flavour)
    if any(entry["plugin_library"] for entry in entries.values()):
        library = bundle.directory / PLUGIN_LIBRARY
        if PLUGIN_LIBRARY not in bundle.manifest["files"]:
            raise BundleError(
                f"{library}: missing, though engines of the bundle were built with it"
            )
        if runtime.get_plugin_registry().load_library(str(library)) is None:
            raise BundleError(f"{library}: TensorRT cannot load it")
    return {
        kind: _TensorrtEngine(
            flavour.trt, runtime, entry, bundle.directory / entry["file"], device
        )
        for kind, entry in entries.items()
    }  # fmt: skip


def load_marked(
    bundle: Bundle, backend: str, dtype: str, device: Device, kind: str, names: tuple[str, ...]
) -> Engine:
    """The engine of a kind once more, built here with inner values of its graph as outputs; the
    plugin library has been loaded with the bundle's engines.

    Raises
    ------
    GlmTrtError
        If TensorRT refuses the graph or crashes.
    """
    flavour, entry = load_flavour(backend), _entries(bundle, backend, dtype, device)[kind]
    with tempfile.TemporaryDirectory(prefix="glm-trt-marked-") as directory:
        plan = build_marked(bundle.directory, entry, names, Path(directory))
        return _TensorrtEngine(flavour.trt, _runtime(flavour), entry, plan, device)


def _entries(bundle: Bundle, backend: str, dtype: str, device: Device) -> dict[str, Any]:
    """The manifest's entries of the engines for the device, by kind."""
    wanted = {"backend": backend, "target": device.target, "dtype": dtype}
    return {
        e["kind"]: e for e in bundle.manifest["engines"]
        if all(e[name] == value for name, value in wanted.items())
    }  # fmt: skip


def _runtime(flavour: Flavour) -> Any:
    runtime = flavour.trt.Runtime(flavour.trt.Logger(flavour.trt.Logger.WARNING))
    if runtime is None:
        raise MissingCapabilityError(f"backend {flavour.backend!r}: TensorRT gives no runtime here")
    return runtime


class _TensorrtEngine:
    """See `Engine`."""

    def __init__(
        self, trt: Any, runtime: Any, entry: dict[str, Any], path: Path, device: Device
    ) -> None:
        self._trt, self._runtime, self._device, self._kind = trt, runtime, device, entry["kind"]
        self._engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BundleError(f"{path}: TensorRT cannot load it (its log says why)")
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.io = {
            name: Io(
                name,
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                self._dtype(engine.get_tensor_dtype(name)),
                tuple(engine.get_tensor_shape(name)),
            )
            for name in names
        }
        self.max_tokens = max(axes["sequence"][2] for axes in entry["profiles"].values())
        self.scratch_bytes = max(
            engine.get_device_memory_size_for_profile_v2(i)
            for i in range(engine.num_optimization_profiles)
        )

    def _dtype(self, dtype: Any) -> np.dtype[Any]:
        if dtype == self._trt.bfloat16:
            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self._trt.nptype(dtype))

    def execution(self, profile: int, scratch: int) -> _TensorrtExecution:
        """As in `Engine`."""
        # One context for each profile: switching one to and fro would wait for the stream, and a
        # recorded step belongs to a context as it was.
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise GlmTrtError(f"{self._kind}: TensorRT gives no execution context")
        context.set_optimization_profile_async(profile, self._device.stream)
        context.set_device_memory(
            scratch, self._engine.get_device_memory_size_for_profile_v2(profile)
        )
        return _TensorrtExecution(context, self._device, self._kind)


class _TensorrtExecution:
    """See `Execution`."""

    def __init__(self, context: Any, device: Device, kind: str) -> None:
        self._context, self._device, self._kind = context, device, kind

    def set_address(self, name: str, address: int) -> None:
        """As in `Execution`."""
        self._expect(self._context.set_tensor_address(name, address), f"the address of {name}")

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """As in `Execution`."""
        self._expect(self._context.set_input_shape(name, shape), f"shape {shape} of {name}")

    def run(self) -> None:
        """As in `Execution`."""
        self._expect(self._context.execute_async_v3(self._device.stream), "a run")

    def _expect(self, good: bool, what: str) -> None:
        if not good:
            raise GlmTrtError(f"{self._kind}: TensorRT refused {what} (its log says why)")
