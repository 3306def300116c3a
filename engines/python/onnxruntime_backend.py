"""Running a bundle on onnxruntime: on its CPU provider in float32, on any machine; on another one
in the checkpoint's dtype.

One session a block kind, shared by its layers. Weights are mapped or converted once, and lie where
the sessions run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx

from glm_trt.engines.python import rewrites as r
from glm_trt.engines.python.backend import Array
from glm_trt.engines.python.contrib_linear import reads_opset, use_contrib_linear
from glm_trt.engines.python.cut_graph import (
    CutGraph,
    MappedExperts,
    experts_node,
    has_narrow_experts,
    stored_inputs,
)
from glm_trt.engines.python.large_weights import LARGE, keep_stored, slice_narrow_products
from glm_trt.engines.python.memory import HostMemory, Memory, ProviderMemory
from glm_trt.engines.python.onnxruntime_batch import OnnxruntimeBatch
from glm_trt.engines.python.onnxruntime_module import ort
from glm_trt.engines.python.providers import Provider
from glm_trt.engines.python.scatter import write_caches
from glm_trt.engines.python.values import ELEMENT_TYPES, array_of, ort_value
from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint.bindings import (
    EXPERTS_PREFIX,
    NUMPY_DTYPES,
    Binding,
    bound_dtype,
    bound_tensor,
)
from glm_trt.model.errors import BlockError, BundleError, MissingCapabilityError

DTYPE = "float32"  # onnxruntime's CPU provider has no bfloat16 arithmetic
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}
# Tokens of one sequence in a pass. Fewer than the least would be slower than the memory is worth.
SCORES_BYTES, LEAST_TOKENS, MOST_TOKENS = 1 << 27, 32, 512


class OnnxruntimeBackend:
    """Runs a bundle; see `Backend`, which says what every method does.

    Parameters
    ----------
    bundle : an opened bundle.
    threads : of each session, all cores if None.
    rewrites : run the rewritten graphs (`rewrites`), which hold the experts' weights in the
        kernel's layout: copied, where a float32 bundle with stacked experts is mapped otherwise.
        False runs the graphs as they are, which computes every expert for every token.
    preload : load the weights of every block of a pass now, not when it first runs.
    provider : one of `PROVIDERS`. On another one than the CPU's the graphs run as they are in the
        bundle, and weights, states and what layers hand on live on its device.
    memory : where they live, if not where the provider says; for tests.

    Raises
    ------
    GlmTrtError
        If there is no such provider.
    MissingCapabilityError
        If it cannot be had on this machine.
    BundleError
        If the bundle has no graphs in the dtype, or onnxruntime refuses one.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        rewrites: bool = True,
        preload: bool = True,
        provider: str = "cpu",
        memory: Memory | None = None,
    ) -> None:
        self.bundle, self.provider = bundle, Provider(provider)
        self.dtype = DTYPE if self.provider.is_cpu else bundle.dtype
        on_host = HostMemory() if self.provider.is_cpu else None
        self.memory: Memory = memory or on_host or ProviderMemory(self.provider)
        rewrites = rewrites and isinstance(self.memory, HostMemory)  # they are for CPU kernels
        # As many parts of an expert as threads, if its width can be cut so.
        threads = threads or len(os.sched_getaffinity(0))
        self._parts = math.gcd(threads, bundle.config.moe_intermediate_size)
        parts = self._parts if rewrites else None
        self._make_session = partial(
            _make_session, bundle, self.provider, self.dtype, threads, parts
        )
        self._sessions: dict[str, ort.InferenceSession | CutGraph] = {}
        self._inputs: dict[str, dict[str, str]] = {}
        self._weights: dict[str, dict[str, Any]] = {}
        self._shared: dict[tuple[Any, ...], tuple[ort.OrtValue, Any]] = {}
        self._marked: dict[str, tuple[str, ...]] = {}
        # Is told what each block of a pass made, by its name; copies, which cost their time.
        self.watch: Callable[[str, dict[str, Array]], None] | None = None
        for block in bundle.blocks if preload else ():
            self._load(block)

    def _load(self, block: Block) -> None:
        """The session of the block's kind, and its weights; prediction blocks come when asked."""
        if block.kind not in self._sessions:
            session = self._make_session(block, self._marked.get(block.kind, ()))
            self._sessions[block.kind] = session
            self._inputs[block.kind] = {value.name: value.type for value in session.get_inputs()}
        self._weights[block.name] = dict(self._bind(x, block.kind) for x in block.bindings)

    def _bind(self, binding: Binding, kind: str) -> tuple[str, Any]:
        """The name of the graph's input that `binding` feeds, and the weights."""
        session, inputs = self._sessions[kind], self._inputs[kind]
        if isinstance(session, CutGraph) and binding.name in session.weights:
            return binding.name, MappedExperts(binding, self.bundle.weights, session.stored)
        suffix = next((suffix for suffix in r.PREPARED if binding.name + suffix in inputs), "")
        dtype = _DTYPES.get(inputs.get(binding.name + suffix, ""))  # None: as it is stored
        key = (binding.tensors, binding.transform, tuple(binding.arguments.items()), suffix, dtype)
        if key not in self._shared:  # a tied head is the embedding's own tensor
            if suffix:
                array: Array = r.PREPARED[suffix](binding, self.bundle.weights, self._parts)
            else:
                array = bound_tensor(binding, self.bundle.weights, dtype)
            self._shared[key] = self.memory.weight(array)
        return binding.name + suffix, self._shared[key][0]

    def mark(self, kind: str, names: tuple[str, ...]) -> None:
        """Let `run_block` give these inner values of a kind's graph too, and no others, as far as
        the graph that runs still has them.
        """
        self._marked[kind] = names
        self._sessions.pop(kind, None)
        for block in (*self.bundle.blocks, *self.bundle.prediction_blocks):
            if block.kind == kind:
                self._weights.pop(block.name, None)

    def release(self, block: Block) -> None:
        """As in `Backend`: what no other block has, too."""
        self._weights.pop(block.name, None)
        held = {id(value) for weights in self._weights.values() for value in weights.values()}
        for key in [key for key, (value, _) in self._shared.items() if id(value) not in held]:
            del self._shared[key]

    def close(self) -> None:
        """Release sessions, weights and mapped files."""
        self._sessions.clear()
        self._weights.clear()
        self._shared.clear()

    def batch(self, rows: int, capacity: int = 1, *, predict: bool = False) -> OnnxruntimeBatch:
        """As in `Backend`."""
        if predict:
            for block in self.bundle.prediction_blocks:
                self._load(block)
        return OnnxruntimeBatch(self, rows, capacity, predict)

    def most_tokens(self, length: int) -> int:
        """As in `Backend`: the scores of a pass, which are held for each token, head and position,
        are kept within `SCORES_BYTES`.
        """
        config = self.bundle.config
        a_token = 4 * max(config.num_attention_heads, config.index_n_heads) * max(length, 1)
        tokens = SCORES_BYTES // a_token // LEAST_TOKENS * LEAST_TOKENS
        return min(max(tokens, LEAST_TOKENS), MOST_TOKENS)

    def session(self, block: Block) -> tuple[Any, dict[str, Any]]:
        """The session of the block's kind, and the block's weights by the names of its inputs."""
        if block.name not in self._weights:
            self._load(block)
        return self._sessions[block.kind], self._weights[block.name]

    def run_block(self, block: Block, inputs: dict[str, Array]) -> dict[str, Array]:
        """As in `Backend`; the inputs are only read."""
        session, weights = self.session(block)
        binding = session.io_binding()
        for name, value in weights.items():
            binding.bind_ortvalue_input(name, value)
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        values = {name: ort_value(array) for name, array in arrays.items()}  # hold no array
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        names = [output.name for output in session.get_outputs()]
        for name in names:
            binding.bind_output(name)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's own have no base but this
            raise BlockError(f"{block.name}: onnxruntime cannot run it: {error}") from error
        for x in block.bindings:
            if math.prod(x.shape) > LARGE and not x.name.startswith(EXPERTS_PREFIX):
                for name in x.tensors:  # where it is mapped: who compares maps it once more
                    self.bundle.weights.release(name)
        return dict(zip(names, map(array_of, binding.get_outputs()), strict=True))


def _numbers(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    """Of the node's stacked gate and up weights."""
    value = next(value for value in model.graph.input if value.name == stored_inputs(node)[0])
    return math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _make_session(
    bundle: Bundle, provider: Provider, dtype: str, threads: int, parts: int | None,
    block: Block, marked: tuple[str, ...],
) -> ort.InferenceSession | CutGraph:  # fmt: skip
    """A session for the block's kind; of the rewritten graph if there are `parts` to cut the
    experts into.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Sessions run in turns: the threads of one must not spin on while another works. (One pool
    # for all would forbid ordinary sessions to the rest of the process.)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # errors are raised; who asked says them

    path = bundle.graph_path(block.kind, dtype)

    def made(model: onnx.ModelProto) -> ort.InferenceSession:
        model = write_caches(model)
        _mark(model, marked)
        graph = model.SerializeToString()
        try:
            return provider.session(graph, options)
        except MissingCapabilityError:
            raise
        except Exception as error:  # onnxruntime's own have no base but this
            raise BundleError(f"{path}: refused by onnxruntime: {error}") from None

    model = onnx.load_model_from_string(path.read_bytes())
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if not provider.is_cpu or not reads_opset(opset):
        model = use_contrib_linear(model)
    if parts is None:
        return made(model)

    def rewritten(part: onnx.ModelProto) -> ort.InferenceSession:
        return made(r.rewrite(slice_narrow_products(part), parts))

    stored = {x.name: bound_dtype(x, bundle.weights) for x in block.bindings}
    mapped = {
        x.name: stored[x.name] for x in block.bindings
        if x.dtype is None and math.prod(x.shape) > LARGE and stored[x.name] != DTYPE
    }  # fmt: skip
    node = experts_node(model)
    if node is not None and (has_narrow_experts(node) or _numbers(model, node) > LARGE):
        _mark(model, marked)
        of = {
            stored[name] for name in stored_inputs(node)
        }  # one dtype, or what holds the values of all
        kept = of.pop() if len(of) == 1 else DTYPE
        return CutGraph(model, ELEMENT_TYPES[NUMPY_DTYPES[kept]], rewritten)
    return rewritten(keep_stored(model, mapped))


def _mark(model: onnx.ModelProto, names: tuple[str, ...]) -> None:
    """Make those of the named values that a node gives, and that are none, outputs."""
    given = {name for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    for name in names:
        if name in given - outputs:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
