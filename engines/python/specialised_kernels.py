"""What TensorRT-RTX compiles on the machine where an engine runs: kernels for its GPU and shapes.

By default it runs fallback kernels until those for a shape are compiled in the background
(`DynamicShapesKernelSpecializationStrategy.LAZY`), so that a CUDA graph recorded early would replay
the fallbacks for ever. What is recorded waits for its kernels (`EAGER`); what takes prompts of any
length does not. Compiled kernels are kept in a cache beside the plan for the next start.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from glm_trt.engines.build.flavours import Flavour
from glm_trt.model.errors import BundleError
from glm_trt.model.files import locked, write_atomically


class SpecialisedKernels:
    """Of one engine.

    Parameters
    ----------
    trt : TensorRT-RTX's module.
    engine : of TensorRT's; its device is current.
    file : of the cache, None for none. What another GPU, driver or version wrote is refused by
        TensorRT-RTX itself, and replaced.
    """

    def __init__(self, trt: Any, engine: Any, file: Path | None) -> None:
        self._trt, self._engine, self._file = trt, engine, file
        self._read = b""
        self._cache = engine.create_runtime_config().create_runtime_cache()
        if file is not None:
            with suppress(OSError):
                self._read = file.read_bytes()
            if self._read and not self._cache.deserialize(self._read):
                self._read = b""

    @classmethod
    def of(
        cls, flavour: Flavour, engine: Any, plan: Path | None, gpu: str
    ) -> SpecialisedKernels | None:
        """Those of an engine on a GPU of that name, kept beside the plan if one is given.

        None where everything was compiled when the engine was built.
        """
        if not flavour.ahead_of_time:
            return None
        file = None
        if plan is not None:
            name = f"{plan.stem}.{flavour.version}.{gpu}.kernels"
            file = plan.with_name(name)
        return cls(flavour.trt, engine, file)

    def config(self, strategy: Any, *, recorded: bool) -> Any:
        """For a context of the engine; `recorded`: whether its runs are to be recorded."""
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        kinds = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = (
            kinds.EAGER if recorded else kinds.LAZY
        )
        # Steps are recorded by us, across all engines.
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        config.set_runtime_cache(self._cache)
        return config

    def close(self) -> None:
        """Keep what is new; where it cannot be written, or another process writes it now, the next
        start compiles it again.
        """
        if self._cache is None:
            return
        content = bytes(self._cache.serialize())
        self._cache = None
        if self._file is not None and content and content != self._read:
            lock = self._file.with_name(f".{self._file.name}.lock")
            with suppress(OSError, BundleError), locked(lock, "runtime that keeps its kernels"):
                write_atomically(self._file, content)
