"""What can be validated: anything that runs a bundle's blocks one by one."""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol, cast

import onnx
from numpy.typing import NDArray
from torch import Tensor

from glm_trt.engines.build.flavours import BACKENDS as TENSORRT
from glm_trt.engines.python.backend import Backend
from glm_trt.engines.python.tensorrt_backend import open_backend
from glm_trt.engines.python.tensorrt_engine import require_tensorrt
from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint.weights import load_weights
from glm_trt.model.errors import BlockError, GlmTrtError
from glm_trt.model.operators import EagerOperators
from glm_trt.model.requirements import require
from glm_trt.plugins.common.interpreter import prepare_interpreter
from glm_trt.plugins.common.run import run
from glm_trt.plugins.folders import CONTRACTS, part_of
from glm_trt.validate.running.graph_evaluator import GraphEvaluator
from glm_trt.validate.running.names import SUBJECTS
from glm_trt.validate.running.reference import Reference, as_array, as_tensor

Arrays = dict[str, NDArray[Any]]

# Kernels choose their configuration by the GPU; the interpreter takes this one's.
INTERPRETED_TARGET = "sm90"


class Subject(Protocol):
    """What is validated. Backends are subjects."""

    dtype: str

    def run_block(self, block: Block, inputs: Arrays) -> Arrays:
        """All outputs of the block by name, and those marked values that there are."""
        ...

    def mark(self, kind: str, names: tuple[str, ...]) -> None:
        """Give these inner values of a kind's graph out too, and no others, as far as they exist
        where it runs.
        """
        ...

    def release(self, block: Block) -> None:
        """Let go of the block's weights; `run_block` loads them again."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


def open_subject(
    bundle: Bundle, name: str, dtype: str | None = None, provider: str | None = None
) -> Subject:
    """The subject `name` of `SUBJECTS`; by default in the dtype it has, or the checkpoint's.

    Parameters
    ----------
    provider : of onnxruntime, the CPU's if None.

    Raises
    ------
    GlmTrtError
        If there is none of that name, or not in that dtype, or it has no providers.
    MissingCapabilityError
        If the machine lacks what it needs.
    """
    _require_name(name)
    checkpoints = bundle.dtype
    if name.startswith("onnxruntime"):
        provider = provider or "cpu"
        _require(name, dtype, "float32" if provider == "cpu" else checkpoints)
        from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend

        return OnnxruntimeBackend(
            bundle, rewrites=name == "onnxruntime", preload=False, provider=provider
        )
    if provider is not None:
        raise GlmTrtError(f"provider {provider!r}: for the backend onnxruntime, not for {name}")
    if name in TENSORRT:
        _require(name, dtype, checkpoints)
        return open_backend(bundle, name)
    dtype = dtype or checkpoints
    if name == "eager":
        return EagerSubject(bundle, dtype)
    if dtype not in bundle.manifest.dtypes:
        have = ", ".join(bundle.manifest.dtypes)
        raise GlmTrtError(f"backend {name!r}: no graphs in {dtype}; the bundle has {have}")
    return GraphSubject(bundle, dtype, KernelOperators() if name == "kernels" else None)


def require_subject(name: str) -> None:
    """Raise what `open_subject` would, as far as it can be told without a bundle: before one is
    opened, which hashes gigabytes.
    """
    _require_name(name)
    if name in TENSORRT:
        require_tensorrt(name)


def _require_name(name: str) -> None:
    if name not in SUBJECTS:
        raise GlmTrtError(f"backend {name!r}: expected one of {', '.join(SUBJECTS)}")


def as_backend(subject: Subject) -> Backend | None:
    """The subject as what a runtime runs on; None where it runs single blocks alone."""
    return cast(Backend, subject) if hasattr(subject, "batch") else None


def default_subject(dtype: str | None, provider: str | None = None) -> str:
    """What is validated by default: onnxruntime, or the graphs in a dtype that it has not."""
    return "onnxruntime" if provider or dtype in (None, "float32") else "graph"


def _require(name: str, dtype: str | None, only: str) -> None:
    if dtype not in (None, only):
        raise GlmTrtError(f"backend {name!r}: runs this bundle in {only}, not in {dtype}")


class EagerSubject:
    """The eager model, with the bundle's own bindings and weights."""

    def __init__(self, bundle: Bundle, dtype: str) -> None:
        self.bundle, self.dtype = bundle, dtype
        self._reference = Reference(bundle, own_bindings=True)
        self._loaded: tuple[str, Any] = ("", None)

    def run_block(self, block: Block, inputs: Arrays) -> Arrays:
        """As in `Subject`."""
        if self._loaded[0] != block.name:
            self._loaded = block.name, self._reference.block(block, self.dtype, absorbed=True)
        outputs: Arrays = self._loaded[1](inputs)
        return outputs

    def mark(self, kind: str, names: tuple[str, ...]) -> None:
        """As in `Subject`: no inner value has a name here."""

    def release(self, block: Block) -> None:
        """As in `Subject`."""
        self._loaded = "", None

    def close(self) -> None:
        """As in `Subject`."""
        self._loaded = "", None


class GraphSubject:
    """The bundle's graphs in `dtype`, evaluated with `operators` (the eager ones if None)."""

    def __init__(self, bundle: Bundle, dtype: str, operators: EagerOperators | None) -> None:
        self.bundle, self.dtype, self.operators = bundle, dtype, operators
        self._evaluators: dict[str, GraphEvaluator] = {}
        self._marked: dict[str, tuple[str, ...]] = {}
        self._weights: tuple[str, dict[str, Any]] = ("", {})

    def run_block(self, block: Block, inputs: Arrays) -> Arrays:
        """As in `Subject`."""
        if block.kind not in self._evaluators:
            model = onnx.load(self.bundle.graph_path(block.kind, self.dtype))
            self._evaluators[block.kind] = GraphEvaluator(model, self.operators)
        if self._weights[0] != block.name:
            weights = load_weights(block.bindings, self.bundle.weights, self.dtype)
            self._weights = block.name, weights
        evaluator = self._evaluators[block.kind]
        given = {name: as_tensor(name, array, self.dtype) for name, array in inputs.items()}
        try:
            found = evaluator.run(given | self._weights[1], self._marked.get(block.kind, ()))
        except BlockError as error:
            raise BlockError(f"{block.name}: its graph cannot be run: {error}") from error
        return {name: as_array(x) for name, x in found.items()}

    def mark(self, kind: str, names: tuple[str, ...]) -> None:
        """As in `Subject`."""
        self._marked[kind] = names

    def release(self, block: Block) -> None:
        """As in `Subject`."""
        self._weights = "", {}

    def close(self) -> None:
        """As in `Subject`."""
        self._weights = "", {}


class KernelOperators(EagerOperators):
    """Triton's kernels of every operator that is a plugin, under the interpreter.

    Raises
    ------
    GlmTrtError
        If Triton was imported before, without its interpreter.
    MissingCapabilityError
        If there is no Triton.
    """

    def __init__(self) -> None:
        if "triton" not in sys.modules:
            os.environ["TRITON_INTERPRET"] = "1"
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise GlmTrtError(
                "backend 'kernels': set TRITON_INTERPRET=1 before anything imports triton"
            )
        require("backend 'kernels'", "plugins", "triton")
        prepare_interpreter()
        for name in CONTRACTS:
            setattr(self, name, _interpreted(name))


def _interpreted(name: str) -> Any:
    launches, kernels = part_of(name, "launch").LAUNCHES, vars(part_of(name, "kernel"))

    def call(*tensors: Tensor | None, **attributes: Any) -> Any:
        # A view may begin anywhere; kernels ask for aligned memory.
        inputs = [None if tensor is None else tensor.contiguous().clone() for tensor in tensors]
        outputs = run(launches, kernels, inputs, attributes, INTERPRETED_TARGET)
        return outputs if len(outputs) > 1 else outputs[0]

    return call
