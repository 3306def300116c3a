"""Runtime, engine, context. Each keeps alive what it is of, as the real bindings do."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stand_in_trt.core import shape_of
from stand_in_trt.enums import (
    CudaGraphStrategy,
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    Severity,
    TensorIOMode,
)

CACHE = b"stand-in runtime cache"


class Logger:
    """Tells of what is as grave as `min_severity`, on stderr."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity
    Severity = Severity

    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        self.min_severity = min_severity

    def _pointer(self, core: Any) -> int:
        """The library's own."""
        return int(core.standInLogger(int(self.min_severity)))


@dataclass(frozen=True)
class IPluginCreatorV3One:
    """Makes plugins of one name."""

    name: str
    plugin_version: str
    plugin_namespace: str


class IPluginRegistry:
    """Of one builder or one runtime."""

    def __init__(self, core: Any, handle: int, owner: Any) -> None:
        self._core, self._handle, self._owner = core, handle, owner

    def load_library(self, plugin_path: str) -> Any:
        """A handle; None, with the reason in the log, where it cannot be loaded."""
        return self._core.standInLoadLibrary(self._handle, plugin_path.encode())

    @property
    def all_creators(self) -> list[IPluginCreatorV3One]:
        reply = ctypes.create_string_buffer(1 << 16)
        assert self._core.standInCreators(self._handle, reply, len(reply)) == 0
        lines = reply.value.decode().splitlines()
        return [IPluginCreatorV3One(*line.split("\t")) for line in lines]


class Runtime:
    """Made of plans: engines."""

    _core: Any  # set for each flavour
    _engine: type[ICudaEngine]

    def __init__(self, logger: Logger) -> None:
        self.logger = logger
        self._handle = self._core.standInRuntime(logger._pointer(self._core))

    def __del__(self) -> None:
        self._core.standInDeleteRuntime(self._handle)

    def get_plugin_registry(self) -> IPluginRegistry:
        return IPluginRegistry(self._core, self._core.standInRuntimeRegistry(self._handle), self)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        plan = bytes(serialized_engine)
        handle = self._core.standInEngine(self._handle, plan, len(plan))
        return None if handle is None else self._engine(self._core, handle, self)


class IRuntimeConfig:
    """How contexts are made."""

    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self._strategy


class RtxRuntimeConfig(IRuntimeConfig):
    """TensorRT-RTX's, with what that one has alone."""

    def __init__(self) -> None:
        super().__init__()
        strategies = DynamicShapesKernelSpecializationStrategy
        self.dynamic_shapes_kernel_specialization_strategy = strategies.LAZY
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self._cache: Any = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> Any:
        return self._cache


class IRuntimeCache:
    """Kernels that were specialised, kept from process to process."""

    def serialize(self) -> bytes:
        return CACHE

    def deserialize(self, blob: Any) -> bool:
        return bytes(blob) == CACHE


class ICudaEngine:
    """A plan, loaded."""

    _is_rtx: bool

    def __init__(self, core: Any, handle: int, runtime: Runtime) -> None:
        self._core, self._handle, self._runtime = core, handle, runtime

    def __del__(self) -> None:
        self._core.standInDeleteEngine(self._handle)

    @property
    def num_io_tensors(self) -> int:
        return int(self._core.standInTensors(self._handle))

    @property
    def num_optimization_profiles(self) -> int:
        return int(self._core.standInProfiles(self._handle))

    @property
    def device_memory_size_v2(self) -> int:
        return max(
            self.get_device_memory_size_for_profile_v2(i)
            for i in range(self.num_optimization_profiles)
        )

    def get_tensor_name(self, index: int) -> str:
        return str(self._core.standInTensorName(self._handle, index).decode())

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode(self._core.standInTensorMode(self._handle, name.encode()))

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._core.standInTensorType(self._handle, name.encode()))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return shape_of(
            lambda sizes: self._core.standInTensorShape(self._handle, name.encode(), -1, 0, sizes)
        )

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        ask = self._core.standInTensorShape
        return [
            shape_of(lambda sizes, i=i: ask(self._handle, name.encode(), profile_index, i, sizes))
            for i in range(3)
        ]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return int(self._core.standInScratch(self._handle, profile_index))

    def create_runtime_config(self) -> IRuntimeConfig:
        return RtxRuntimeConfig() if self._is_rtx else IRuntimeConfig()

    def create_execution_context(
        self,
        strategy: ExecutionContextAllocationStrategy | IRuntimeConfig = (
            ExecutionContextAllocationStrategy.STATIC
        ),
    ) -> IExecutionContext:
        lazy = self._is_rtx
        if isinstance(strategy, RtxRuntimeConfig):
            specialisation = strategy.dynamic_shapes_kernel_specialization_strategy
            lazy = specialisation == DynamicShapesKernelSpecializationStrategy.LAZY
        if isinstance(strategy, IRuntimeConfig):
            strategy = strategy.get_execution_context_allocation_strategy()
        handle = self._core.standInContext(self._handle, int(strategy), int(lazy))
        return IExecutionContext(self._core, handle, self)


class IExecutionContext:
    """A state of an engine, on one profile at a time."""

    def __init__(self, core: Any, handle: int, engine: ICudaEngine) -> None:
        self._core, self._handle, self.engine = core, handle, engine

    def __del__(self) -> None:
        self._core.standInDeleteContext(self._handle)

    @property
    def active_optimization_profile(self) -> int:
        return int(self._core.standInGetProfile(self._handle))

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        return bool(self._core.standInSetProfile(self._handle, profile_index, stream_handle))

    def set_device_memory(self, memory: int, size: int) -> None:
        self._core.standInSetScratch(self._handle, memory, size)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        return bool(self._core.standInSetShape(self._handle, name.encode(), len(shape), sizes))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return shape_of(
            lambda sizes: self._core.standInGetShape(self._handle, name.encode(), sizes)
        )

    def set_tensor_address(self, name: str, memory: int) -> bool:
        return bool(self._core.standInSetAddress(self._handle, name.encode(), memory))

    def get_tensor_address(self, name: str) -> int:
        return int(self._core.standInGetAddress(self._handle, name.encode()) or 0)

    def execute_async_v3(self, stream_handle: int) -> bool:
        return bool(self._core.standInEnqueue(self._handle, stream_handle))
