"""Engines of block kinds as the TensorRT backend sees them, and those of TensorRT itself."""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from glm_trt.engines.build.engines import build_marked
from glm_trt.engines.build.flavours import BACKENDS, Flavour, load_flavour, present_target
from glm_trt.engines.python.device import Device
from glm_trt.engines.python.specialised_kernels import SpecialisedKernels
from glm_trt.export.bundle.format import Block, EngineEntry
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.errors import BundleError, GlmTrtError, MissingCapabilityError
from glm_trt.model.requirements import require

RECORDED_PROFILE = 0  # that of one token


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

    def close(self) -> Any:
        """Give back what it holds, when nothing that it queued is left; again does nothing."""
        ...


class Engine(Protocol):
    """The engine of a kind: profile 0 takes one token, profile 1 from 2 to `max_tokens`."""

    io: dict[str, Io]
    max_tokens: int
    scratch_bytes: int

    def execution(self, profile: int, scratch: int) -> Execution:
        """An execution that works in `scratch`, which those that run in turns may share."""
        ...

    def close(self) -> None:
        """Give back what it holds, its executions first."""
        ...


class Engines(Protocol):
    """The engines that a backend runs."""

    @property
    def by_kind(self) -> Mapping[str, Engine]:
        """Those of the bundle."""
        ...

    def marked(self, kind: str, names: tuple[str, ...]) -> Engine:
        """The engine of a kind once more, built here with inner values of its graph as outputs."""
        ...

    def close(self) -> None:
        """Give back what all of them hold."""
        ...


class Stage:
    """One block ready to run, on either profile; what changes from run to run is set then."""

    def __init__(
        self, block: Block, engine: Engine, addresses: dict[str, int], scratch: int
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

    def close(self) -> None:
        """Give back what its executions hold."""
        for execution in self._executions:
            execution.close()


def require_tensorrt(backend: str) -> Flavour:
    """The flavour, where this machine has the GPU and the libraries to run it: nothing is read yet.

    Raises
    ------
    GlmTrtError
        If `backend` is not a flavour of TensorRT.
    MissingCapabilityError
        If there is no driver, GPU or library, or TensorRT does not run on such a GPU.
    """
    if backend not in BACKENDS:
        raise GlmTrtError(f"backend {backend!r}: expected onnxruntime or {' or '.join(BACKENDS)}")
    target = present_target(f"backend {backend!r}", instead="")
    require(f"backend {backend!r}", backend, "cuda.bindings.driver")
    flavour = load_flavour(backend)
    if flavour.ahead_of_time and target not in flavour.known_targets():
        raise MissingCapabilityError(
            f"backend {backend!r}: TensorRT-RTX {flavour.version} does not run on a GPU of "
            f"{target}, only on {', '.join(flavour.known_targets())}; the backend tensorrt "
            "is for data-centre GPUs"
        )
    return flavour


class TensorrtEngines:
    """The bundle's engines for the device, by kind, each plan read once; see `Engines`.

    All of them, and those built later with inner values as outputs, belong to one runtime of
    TensorRT's: a plugin library is loaded into the registry of one, and unknown to any other.

    Raises
    ------
    BundleError
        If an engine is missing, of another TensorRT version, or cannot be loaded.
    MissingCapabilityError
        If TensorRT gives no runtime.
    """

    def __init__(self, bundle: Bundle, flavour: Flavour, dtype: str, device: Device) -> None:
        self._bundle, self._flavour, self._device = bundle, flavour, device
        self._entries = _entries(bundle, flavour.backend, dtype, device)
        self._check(dtype)
        self._runtime: Any = None
        self._marked: weakref.WeakSet[TensorrtEngine] = weakref.WeakSet()
        self.by_kind: dict[str, TensorrtEngine] = {}
        with device.current(), ExitStack() as undo:
            undo.callback(self.close)
            trt = flavour.trt
            self._logger = trt.Logger(trt.Logger.WARNING)
            self._runtime = trt.Runtime(self._logger)
            if self._runtime is None:
                raise MissingCapabilityError(
                    f"backend {flavour.backend!r}: TensorRT gives no runtime here"
                )
            self._load_plugins()
            for kind, entry in self._entries.items():
                path = bundle.directory / entry.file
                self.by_kind[kind] = TensorrtEngine(flavour, self._runtime, entry, path, device)
            undo.pop_all()

    def _check(self, dtype: str) -> None:
        backend, directory = self._flavour.backend, self._bundle.directory
        missing = [kind for kind in self._bundle.kinds if kind not in self._entries]
        if missing:
            target = self._device.target
            raise BundleError(
                f"{directory}: no engine of {missing[0]} in {dtype} for {target} ({backend}); "
                f"build it: glm-trt build {directory} --backend {backend} --target {target}"
            )
        for kind, entry in self._entries.items():
            if entry.backend_version != self._flavour.version:
                raise BundleError(
                    f"{directory / entry.file}: engine of {kind}: built with {backend} "
                    f"{entry.backend_version}, this is {self._flavour.version}; build it again"
                )

    def _load_plugins(self) -> None:
        if not any(entry.plugin_library for entry in self._entries.values()):
            return
        library = self._bundle.directory / (self._bundle.manifest.library or "")
        if self._runtime.get_plugin_registry().load_library(str(library)) is None:
            raise BundleError(f"{library}: TensorRT cannot load it")

    def marked(self, kind: str, names: tuple[str, ...]) -> TensorrtEngine:
        """As in `Engines`.

        Raises
        ------
        GlmTrtError
            If TensorRT refuses the graph or crashes.
        """
        entry = self._entries[kind]
        with tempfile.TemporaryDirectory(prefix="glm-trt-marked-") as directory:
            plan = build_marked(self._bundle.directory, entry, names, Path(directory))
            with self._device.current():
                engine = TensorrtEngine(
                    self._flavour, self._runtime, entry, plan, self._device, keep_cache=False
                )
        self._marked.add(engine)
        return engine

    def close(self) -> None:
        """As in `Engines`: what engines execute first, the runtime last."""
        with self._device.current():
            for engine in (*self._marked, *self.by_kind.values()):
                engine.close()
            self._marked.clear()
            self.by_kind.clear()
            self._runtime = None


def _entries(bundle: Bundle, backend: str, dtype: str, device: Device) -> dict[str, EngineEntry]:
    """The manifest's entries of the engines for the device, by kind."""
    wanted = (backend, device.target, dtype)
    engines = bundle.manifest.engines
    return {x.kind: x for x in engines if (x.backend, x.target, x.dtype) == wanted}


class TensorrtEngine:
    """See `Engine`.

    Parameters
    ----------
    flavour : of TensorRT.
    runtime : TensorRT's, with the plugins that the plan needs.
    entry : the engine's, of the manifest.
    path : of the plan.
    device : where it runs; current.
    keep_cache : whether what TensorRT-RTX compiles here is kept beside the plan.

    Raises
    ------
    BundleError
        If TensorRT cannot load the plan.
    """

    def __init__(
        self, flavour: Flavour, runtime: Any, entry: EngineEntry, path: Path, device: Device,
        *, keep_cache: bool = True,
    ) -> None:  # fmt: skip
        trt = flavour.trt
        self._trt, self._device, self._kind = trt, device, entry.kind
        self._engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BundleError(f"{path}: TensorRT cannot load it (its log says why)")
        engine = self._engine
        self._executions: weakref.WeakSet[TensorrtExecution] = weakref.WeakSet()
        self._specialised = SpecialisedKernels.of(
            flavour, engine, path if keep_cache else None, device.name
        )
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
        self.max_tokens = max(axes["sequence"][2] for axes in entry.profiles.values())
        self.scratch_bytes = max(
            engine.get_device_memory_size_for_profile_v2(i)
            for i in range(engine.num_optimization_profiles)
        )

    def _dtype(self, dtype: Any) -> np.dtype[Any]:
        if dtype == self._trt.bfloat16:
            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self._trt.nptype(dtype))

    def execution(self, profile: int, scratch: int) -> TensorrtExecution:
        """As in `Engine`."""
        # One context for each profile: switching one to and fro would wait for the stream, and a
        # recorded step belongs to a context as it was.
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._device.current():
            if self._specialised is None:
                context = self._engine.create_execution_context(strategy)
            else:
                config = self._specialised.config(strategy, recorded=profile == RECORDED_PROFILE)
                context = self._engine.create_execution_context(config)
            if context is None:
                raise GlmTrtError(f"{self._kind}: TensorRT gives no execution context")
            execution = TensorrtExecution(context, self._device, self._kind)
            self._executions.add(execution)
            execution.expect(
                context.set_optimization_profile_async(profile, self._device.stream),
                f"profile {profile}",
            )
            size = self._engine.get_device_memory_size_for_profile_v2(profile)
            context.set_device_memory(scratch, size)
        return execution

    def close(self) -> None:
        """As in `Engine`: executions before the engine that they are of."""
        for execution in list(self._executions):
            execution.close()
        with self._device.current():
            if self._specialised is not None:
                self._specialised.close()
            self._specialised = self._engine = None


class TensorrtExecution:
    """See `Execution`."""

    def __init__(self, context: Any, device: Device, kind: str) -> None:
        self._held, self._device, self._kind = [context], device, kind
        # TensorRT frees device memory with a context, which the collector may do in any thread.
        self.close = weakref.finalize(self, _let_go, device, self._held)
        self.close.atexit = False  # the process ends, and the driver with it

    @property
    def _context(self) -> Any:
        return self._held[0]

    def set_address(self, name: str, address: int) -> None:
        """As in `Execution`."""
        with self._device.current():
            self.expect(self._context.set_tensor_address(name, address), f"the address of {name}")

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """As in `Execution`."""
        with self._device.current():
            self.expect(self._context.set_input_shape(name, shape), f"shape {shape} of {name}")

    def run(self) -> None:
        """As in `Execution`."""
        with self._device.current():
            self.expect(self._context.execute_async_v3(self._device.stream), "a run")

    def expect(self, good: bool, what: str) -> None:
        """Raise GlmTrtError unless TensorRT agreed."""
        if not good:
            raise GlmTrtError(f"{self._kind}: TensorRT refused {what} (its log says why)")


def _let_go(device: Device, held: list[Any]) -> None:
    """Destroy what is held, when the stream has passed all that it queued."""

    def work() -> None:
        with suppress(GlmTrtError):  # a device that failed does nothing any more
            device.synchronize()
        held.clear()

    device.release(work)
