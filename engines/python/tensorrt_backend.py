"""Running a bundle's TensorRT engines: weights and states bound by address, one stream.

Engines are of batch 1 and of static capacity, so the rows of a batch run one after another, each
with its own states and as many tokens as it has: nothing is padded.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.python.device import Device, DeviceMemory
from glm_trt.engines.python.gpu import Gpu
from glm_trt.engines.python.tensorrt_batch import HEAD_TOKENS, TensorrtBatch
from glm_trt.engines.python.tensorrt_engine import (
    Engine,
    Engines,
    Stage,
    TensorrtEngines,
    require_tensorrt,
)
from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES, Binding, bound_dtype, bound_tensor

Array = NDArray[Any]


class TensorrtBackend:
    """See `Backend`.

    Parameters
    ----------
    bundle : an opened bundle.
    engines : for `device`; closed with the backend.
    dtype : of the engines.
    device : where they run; closed with the backend.

    Raises
    ------
    MissingCapabilityError
        If they need more memory than there is; the caller closes engines and device then.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Engines,
        dtype: str,
        device: Device,
    ) -> None:
        self.bundle, self.dtype, self.device = bundle, dtype, device
        self._all_engines, self.engines = engines, engines.by_kind
        self._marked: dict[str, Engine] = {}
        self._batches: weakref.WeakSet[TensorrtBatch] = weakref.WeakSet()
        used = [self.engines[block.kind] for block in bundle.blocks if block.kind != "head"]
        self.max_tokens = min(engine.max_tokens for engine in used)
        self._weights = DeviceMemory(device, self.weight_sizes(), "the weights")
        for block in (*bundle.blocks, *bundle.prediction_blocks):
            for x in block.bindings:
                self._upload(x, self._weights.addresses[_key(x)])
        self._shared = DeviceMemory(device, self.activation_sizes(), "activations")
        self.shared = self._shared.addresses

    def weight_sizes(self) -> dict[str, int]:
        """Bytes of each distinct weight, by what it is made of: a tied head is the embedding."""
        blocks = (*self.bundle.blocks, *self.bundle.prediction_blocks)
        return {
            _key(x): int(np.prod(x.shape)) * NUMPY_DTYPES[x.dtype or self.dtype].itemsize
            for block in blocks for x in block.bindings
        }  # fmt: skip

    def activation_sizes(self) -> dict[str, int]:
        """Bytes of what the blocks hand on, and of the scratch that they share."""
        wide = self.bundle.config.hidden_size * NUMPY_DTYPES[self.dtype].itemsize
        sizes = {
            "scratch": max(engine.scratch_bytes for engine in self.engines.values()),
            "projected": HEAD_TOKENS * wide,  # what the head is given
        }
        for kind, engine in self.engines.items():
            tokens = min(HEAD_TOKENS, engine.max_tokens) if kind == "head" else self.max_tokens
            states = {name + out for name in self._state_names() for out in ("", "_out")}
            weights = {x.name for block in self._blocks_of(kind) for x in block.bindings}
            for x in engine.io.values():
                if x.name in states | weights:
                    continue
                names = {"hidden": ("hidden_0",), "hidden_out": ("hidden_1", "predicted")}
                for name in names.get(x.name, (x.name,)):
                    sizes[name] = max(sizes.get(name, 0), x.bytes(tokens))
        # Of the latest layer with an indexer, for those behind it that have none.
        indices = [sizes.pop(name) for name in ("shared_indices", "topk_indices") if name in sizes]
        return sizes | ({"topk_indices": max(indices)} if indices else {})

    def stage(self, block: Block, addresses: dict[str, int], engine: Engine | None = None) -> Stage:
        """A stage of `block`, its weights and the activations that all share bound.

        `addresses` may hold a "scratch" of its own, for an `engine` that is not the block's kind's.
        """
        shared = {**self.shared, "shared_indices": self.shared.get("topk_indices", 0)}
        weights = {x.name: self._weights.addresses[_key(x)] for x in block.bindings}
        bound = shared | weights | addresses
        return Stage(block, engine or self.engines[block.kind], bound, bound["scratch"])

    def batch(self, rows: int, capacity: int = 1, *, predict: bool = False) -> TensorrtBatch:
        """As in `Backend`; the capacity is that of the engines."""
        batch = TensorrtBatch(self, rows, predict)
        self._batches.add(batch)
        return batch

    def most_tokens(self, length: int) -> int:
        """As in `Backend`: what the engines take."""
        return self.max_tokens

    def run_block(self, block: Block, inputs: dict[str, Array]) -> dict[str, Array]:
        """As in `Backend`, row by row."""
        rows = len(next(iter(inputs.values())))
        results = [
            self._run_row(block, {name: x[row : row + 1] for name, x in inputs.items()})
            for row in range(rows)
        ]
        return {name: np.concatenate([x[name] for x in results]) for name in results[0]}

    def _run_row(self, block: Block, inputs: dict[str, Array]) -> dict[str, Array]:
        marked = self._marked.get(block.kind)
        engine = marked or self.engines[block.kind]
        name = "input_ids" if "input_ids" in inputs else "hidden"
        tokens = inputs[name].shape[1]
        weights = {x.name for x in block.bindings}
        bound = [x for x in engine.io.values() if x.name not in weights]
        caches = {s.name for s in self.bundle.states(block) if s.has_capacity}
        room = min((inputs[cache].shape[2] for cache in caches), default=self.bundle.max_seq_len)
        inputs_of = {x.name for x in bound if x.is_input}
        scratch = {"scratch": marked.scratch_bytes} if marked else {}
        memory = DeviceMemory(self.device, scratch | {
            x.name: x.bytes(tokens) for x in bound if x.name.removesuffix("_out") not in caches
            or x.name in inputs_of
        }, f"a run of {block.name}")  # fmt: skip
        stage = None
        try:
            addresses = memory.addresses | {f"{x}_out": memory.addresses[x] for x in caches}
            for x in bound:
                if x.is_input:
                    given = inputs[x.name].astype(x.dtype)
                    if x.name in caches:  # engines have room for the longest sequence
                        given = _widened(given, x.shape, 0)
                    elif x.name == "shared_indices":
                        given = _widened(given, x.shape_for(tokens), -1)
                    self.device.upload(addresses[x.name], np.ascontiguousarray(given))
            stage = self.stage(block, addresses, engine)
            stage.run(tokens, {})
            results = {}
            for x in bound:
                if not x.is_input:
                    array = np.empty(x.shape_for(tokens), x.dtype)
                    self.device.download(addresses[x.name], array)
                    # No more indices than there are positions.
                    if x.name.removesuffix("_out") in caches or x.name == "topk_indices":
                        array = array[:, :, :room]
                    results[x.name] = array
            return results
        finally:
            if stage is not None:
                stage.close()
            memory.free()

    def mark(self, kind: str, names: tuple[str, ...]) -> None:
        """As in `Backend`: an engine is built anew, in which TensorRT may fuse otherwise."""
        before = self._marked.pop(kind, None)
        if before is not None:
            before.close()
        if names:
            self._marked[kind] = self._all_engines.marked(kind, names)

    def release(self, block: Block) -> None:
        """As in `Backend`: nothing, as weights are uploaded once."""

    def close(self) -> None:
        """As in `Backend`: with batches that are still there; the device last."""
        for batch in list(self._batches):
            batch.free()
        self._all_engines.close()  # those that are marked too
        self._marked.clear()
        self._shared.free()
        self._weights.free()
        self.device.close()

    def _upload(self, binding: Binding, address: int) -> None:
        """One weight: the host holds no more than one at a time."""
        dtype = self.dtype if binding.dtype is None else bound_dtype(binding, self.bundle.weights)
        array = bound_tensor(binding, self.bundle.weights, dtype)
        self.device.upload(address, np.ascontiguousarray(array))

    def _state_names(self) -> set[str]:
        blocks = (*self.bundle.blocks, *self.bundle.prediction_blocks)
        return {spec.name for block in blocks for spec in self.bundle.states(block)}

    def _blocks_of(self, kind: str) -> Iterable[Block]:
        blocks = (*self.bundle.blocks, *self.bundle.prediction_blocks)
        return (block for block in blocks if block.kind == kind)


def open_backend(bundle: Bundle, backend: str) -> TensorrtBackend:
    """The bundle's engines on the GPU that is present, in the checkpoint's dtype.

    Raises
    ------
    GlmTrtError
        If `backend` is not a flavour of TensorRT.
    MissingCapabilityError
        If there is no driver, GPU, library or memory.
    BundleError
        If the bundle has no such engines.
    """
    flavour, dtype = require_tensorrt(backend), bundle.dtype
    with ExitStack() as undo:
        device = Gpu(f"backend {backend!r}", backend)
        undo.callback(device.close)
        engines = TensorrtEngines(bundle, flavour, dtype, device)
        undo.callback(engines.close)
        opened = TensorrtBackend(bundle, engines, dtype, device)
        undo.pop_all()
    return opened


def _key(binding: Binding) -> str:
    return f"{binding.transform} {binding.tensors} {binding.arguments} {binding.dtype}"


def _widened(array: Array, shape: tuple[int, ...], filler: int) -> Array:
    """With `filler` behind what there is."""
    wide = np.full(shape, filler, array.dtype)
    wide[tuple(slice(0, size) for size in array.shape)] = array
    return wide
