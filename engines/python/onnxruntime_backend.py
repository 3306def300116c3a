"""Running a bundle on onnxruntime's CPU provider: float32, on any machine.

One session a block kind, shared by its layers; IO bindings in which every buffer is bound once and
the caches stay in place (TensorScatter writes into the buffer it reads).
"""

from __future__ import annotations

import math
import os
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from glm_trt.engines.bundle import Bundle, BundleBlock
from glm_trt.engines.python import rewrites as r
from glm_trt.engines.python.cut_session import CutSession, MappedExperts, experts_node
from glm_trt.engines.python.large_weights import LARGE, keep_stored, slice_narrow_products
from glm_trt.engines.python.values import ELEMENT_TYPES, ort_value
from glm_trt.model.bindings import EXPERTS_PREFIX, NUMPY_DTYPES, Binding, bound_dtype, bound_tensor
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.states import StateSpec

Array = NDArray[Any]
DTYPE = "float32"  # onnxruntime's CPU provider has no bfloat16 arithmetic

# Capacity grows in steps: the function bodies score the whole buffer, so it is kept close to
# what is used.
CAPACITY_STEP = 128


class _States:
    """The states of one layer for a batch.

    A cache has one buffer, which a pass writes in place (TensorScatter). Any other state has two,
    read and written by turns: a node may still read what another one would have overwritten.
    """

    def __init__(self, specs: tuple[StateSpec, ...], batch: int, capacity: int) -> None:
        self._specs, self._batch = specs, batch
        self._buffers: dict[str, list[Array]] = {
            spec.name: [
                np.zeros(spec.shape(batch, capacity), np.float32)
                for _ in range(1 if spec.has_capacity else 2)
            ]
            for spec in specs
        }

    @property
    def turns(self) -> int:
        """After how many passes the same buffers are read again."""
        return max((len(buffers) for buffers in self._buffers.values()), default=1)

    def at(self, turn: int) -> dict[str, Array]:
        """What passes of this turn (0 or 1) read and those of the other write, by name."""
        return {name: buffers[turn % len(buffers)] for name, buffers in self._buffers.items()}

    def grow(self, capacity: int) -> None:
        """Keep the content, with room for `capacity` positions."""
        for spec in self._specs:
            if spec.has_capacity:
                (old,) = self._buffers[spec.name]
                new = np.zeros(spec.shape(self._batch, capacity), np.float32)
                new[:, :, : old.shape[2]] = old
                self._buffers[spec.name] = [new]


class OnnxruntimeRuntime:
    """Runs a bundle. Use as a context manager, or call `close`.

    Parameters
    ----------
    bundle : an opened bundle.
    threads : of each session, all cores if None.
    rewrites : run the rewritten graphs (`rewrites`), which hold the experts' weights in the
        kernel's layout: copied, where a float32 bundle with stacked experts is mapped otherwise.
        False runs the graphs as they are, which computes every expert for every token.
    """

    dtype = DTYPE

    def __init__(self, bundle: Bundle, threads: int | None = None, rewrites: bool = True) -> None:
        self.bundle = bundle
        # As many parts of an expert as threads, if its width can be cut so.
        threads = threads or len(os.sched_getaffinity(0))
        self._parts = math.gcd(threads, bundle.config.moe_intermediate_size)
        self._make_session = partial(
            _make_session, bundle, threads, self._parts if rewrites else None
        )
        self._sessions: dict[str, ort.InferenceSession | CutSession] = {}
        self._inputs: dict[str, dict[str, str]] = {}
        self._weights: dict[str, dict[str, Any]] = {}
        self._arrays: list[Array] = []  # onnxruntime does not keep the mapped arrays alive
        self._shared: dict[tuple[Any, ...], ort.OrtValue] = {}
        for block in bundle.blocks:
            self._load(block)

    def _load(self, block: BundleBlock) -> None:
        """The session of the block's kind, and its weights; prediction blocks come when asked."""
        if block.kind not in self._sessions:
            session = self._make_session(block)
            self._sessions[block.kind] = session
            self._inputs[block.kind] = {value.name: value.type for value in session.get_inputs()}
        self._weights[block.name] = dict(self._bind(x, block.kind) for x in block.bindings)

    def _bind(self, binding: Binding, kind: str) -> tuple[str, Any]:
        """The name of the graph's input that `binding` feeds, and the weights."""
        session, inputs = self._sessions[kind], self._inputs[kind]
        if isinstance(session, CutSession) and binding.name in session.weights:
            return binding.name, MappedExperts(binding, self.bundle.weights)
        parted = (r.PARTED_GATE_UP, r.PARTED_DOWN)
        suffix = next((suffix for suffix in parted if binding.name + suffix in inputs), "")
        # None: as it is stored.
        dtype = DTYPE if inputs.get(binding.name + suffix) == "tensor(float)" else None
        key = (binding.tensors, binding.transform, tuple(binding.arguments.items()), suffix, dtype)
        if key not in self._shared:  # a tied head is the embedding's own tensor
            if suffix:
                array: Array = r.parted_experts(binding, self.bundle.weights, self._parts, suffix)
            else:
                array = bound_tensor(binding, self.bundle.weights, dtype)
            self._arrays.append(array)
            self._shared[key] = ort_value(array)
        return binding.name + suffix, self._shared[key]

    def __enter__(self) -> OnnxruntimeRuntime:
        """Nothing to do: the constructor has loaded everything."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Close, whatever happened."""
        self.close()

    def close(self) -> None:
        """Release sessions, weights and mapped files."""
        self._sessions.clear()
        self._weights.clear()
        self._shared.clear()
        self._arrays.clear()

    def forward(self, input_ids: Any) -> NDArray[np.float32]:
        """Logits of a pass from empty states: ids [B, S] → float32 [B, S, vocab]."""
        ids = self._checked(input_ids)
        return self.start(ids.shape[0], ids.shape[1]).step(ids, all_logits=True)

    def generate(
        self,
        input_ids: Any,
        max_new_tokens: int = 32,
        *,
        eos_token_ids: tuple[int, ...] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """Continue each row of ids [B, S]: the new tokens of each, the stop token included.

        Parameters
        ----------
        input_ids : integers [B, S].
        max_new_tokens : how many at most.
        eos_token_ids : where a row stops; the bundle's own if None.
        temperature : 0 is greedy (ties go to the smaller id), else sampling from
            softmax(logits / temperature).
        seed : of the sampling.
        """
        ids = self._checked(input_ids)
        stops = set(self.bundle.eos_token_ids() if eos_token_ids is None else eos_token_ids)
        rows: list[list[int]] = [[] for _ in ids]
        done = [max_new_tokens < 1] * len(rows)
        generator = np.random.default_rng(seed)
        sequence = self.start(ids.shape[0], ids.shape[1])
        while not all(done):
            chosen = _choose(sequence.step(ids)[:, -1], temperature, generator)
            for i, token in enumerate(chosen.tolist()):
                if not done[i]:
                    rows[i].append(token)
                    done[i] = token in stops or len(rows[i]) == max_new_tokens
            ids = chosen[:, None]
        return rows

    def start(self, batch: int, capacity: int = 0) -> Sequence:
        """Empty states for `batch` sequences, with room for `capacity` positions to begin with."""
        return Sequence(self, batch, capacity)

    def run_block(self, block: BundleBlock, inputs: dict[str, Array]) -> dict[str, Array]:
        """One block on copies of its inputs, all outputs by name; what validation compares."""
        if block.name not in self._weights:
            self._load(block)
        session = self._sessions[block.kind]
        binding = session.io_binding()
        for name, value in self._weights[block.name].items():
            binding.bind_ortvalue_input(name, value)
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        names = [output.name for output in session.get_outputs()]
        for name in names:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        for x in block.bindings:
            if math.prod(x.shape) > LARGE and not x.name.startswith(EXPERTS_PREFIX):
                for name in x.tensors:  # where it is mapped: who compares maps it once more
                    self.bundle.weights.release(name)
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    def _checked(self, input_ids: Any) -> NDArray[np.int64]:
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise GlmTrtError(
                f"input_ids: expected integers [B, S], not empty; found {ids.dtype} {ids.shape}"
            )
        vocabulary = self.bundle.config.vocab_size
        if ids.min() < 0 or ids.max() >= vocabulary:
            found = int(ids.min() if ids.min() < 0 else ids.max())
            raise GlmTrtError(f"input_ids: expected ids below {vocabulary}, found {found}")
        return np.ascontiguousarray(ids, np.int64)


class Sequence:
    """The states of a batch of sequences, and the passes over them."""

    def __init__(self, runtime: OnnxruntimeRuntime, batch: int, capacity: int) -> None:
        self.runtime, self.batch = runtime, batch
        self.lengths = np.zeros(batch, np.int64)  # tokens so far, row by row
        self.capacity = _rounded(max(capacity, 1))
        bundle = runtime.bundle
        self._states = {
            block.name: _States(bundle.states(block), batch, self.capacity)
            for block in bundle.blocks
        }
        self._pass: _Pass | None = None
        # Where there are caches alone, every pass reads and writes the same buffers.
        self._turn, self._turns = 0, max(states.turns for states in self._states.values())

    def step(
        self,
        ids: NDArray[np.int64],
        all_logits: bool = False,
        lengths: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Append ids [B, S]; logits of the last token [B, 1, vocab], or of all [B, S, vocab].

        Parameters
        ----------
        lengths : how many of each row's S ids to append, all if None. What stands behind them is
            padding, whose logits mean nothing; so do the last token's of a row that appends none.

        Raises
        ------
        GlmTrtError
            If a sequence would outgrow the bundle's `max_seq_len`.
        """
        added = ids.shape[1]
        appended = np.full(self.batch, added) if lengths is None else lengths
        longest, limit = int((self.lengths + appended).max()), self.runtime.bundle.max_seq_len
        if longest > limit:
            raise GlmTrtError(
                f"sequence of {longest} tokens: the bundle was exported for {limit} (--max-seq-len)"
            )
        room = int(self.lengths.max()) + added  # padding is written too
        if room > self.capacity:
            self.capacity, self._pass = _rounded(room), None
            for states in self._states.values():
                states.grow(self.capacity)
        wanted = (added, added if all_logits else 1)
        if self._pass is None or self._pass.sizes != wanted:
            self._pass = _Pass(self.runtime, self._states, self.batch, self.capacity, *wanted)
        logits = self._pass.run(ids, self.lengths, appended, self._turn)
        self._turn = (self._turn + 1) % self._turns
        self.lengths = self.lengths + appended
        return logits


class _Pass:
    """The IO bindings of passes of `added` tokens with `kept` of their logits.

    Every buffer is bound once a turn, the layers' hidden states to two buffers by turns, so that
    a pass is nothing but the sessions' runs.
    """

    def __init__(
        self, runtime: OnnxruntimeRuntime, states: dict[str, _States],
        batch: int, capacity: int, added: int, kept: int,
    ) -> None:  # fmt: skip
        config = runtime.bundle.config
        self.runtime, self.sizes = runtime, (added, kept)
        self.ids = np.zeros((batch, added), np.int64)
        self.past, self.appended = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        hidden = [np.zeros((batch, added, config.hidden_size), np.float32) for _ in range(2)]
        angles = (batch, added, config.qk_rope_head_dim // 2)
        shared: dict[str, Array] = {
            "cos": np.zeros(angles, np.float32),
            "sin": np.zeros(angles, np.float32),
            "past_lengths": self.past,
            "lengths": self.appended,
        }
        indices = np.zeros((batch, added, min(config.index_topk, capacity)), np.int32)
        self.last = np.zeros((batch, kept, config.hidden_size), np.float32)
        self._shared, self._hidden, self._indices, self._states = shared, hidden, indices, states
        self._bindings: dict[int, list[Any]] = {}  # of a turn, made when it first comes

    def _bind_all(self, turn: int) -> list[Any]:
        """The bindings of every block, in the order of a pass."""
        shared, hidden, bindings = self._shared, self._hidden, []
        for i, block in enumerate(self.runtime.bundle.blocks):
            read, written = (self._states[block.name].at(t) for t in (turn, 1 - turn))
            inputs: dict[str, Array] = {
                "hidden": hidden[i % 2],
                "shared_indices": self._indices,
                "input_ids": self.ids,
            }
            outputs: dict[str, Array] = {f"{name}_out": array for name, array in written.items()}
            outputs |= {"hidden_out": hidden[1 - i % 2], "topk_indices": self._indices}
            if block.kind == "head":
                inputs, outputs = {"hidden": self.last}, {}
            bindings.append(self._bind(block, inputs | shared | read, outputs | shared))
        return bindings

    def _bind(self, block: BundleBlock, inputs: dict[str, Array], outputs: dict[str, Array]) -> Any:
        """Bind those of the arrays that the block has."""
        session = self.runtime._sessions[block.kind]
        binding = session.io_binding()
        for name, value in self.runtime._weights[block.name].items():
            binding.bind_ortvalue_input(name, value)
        for name in self.runtime._inputs[block.kind].keys() & inputs.keys():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(inputs[name]))
        for output in session.get_outputs():
            if output.name in outputs:
                value = ort.OrtValue.ortvalue_from_numpy(outputs[output.name])
                binding.bind_ortvalue_output(output.name, value)
        return session, binding, [inputs, outputs]  # onnxruntime keeps no array alive

    def run(
        self,
        ids: NDArray[np.int64],
        past: NDArray[np.int64],
        appended: NDArray[np.int64],
        turn: int,
    ) -> NDArray[np.float32]:
        """Logits [B, kept, vocab] of all or the last of the tokens that are `appended` [B] to the
        `past` [B] ones: ids [B, added].
        """
        self.ids[:], self.past[:], self.appended[:] = ids, past, appended
        if turn not in self._bindings:
            self._bindings[turn] = self._bind_all(turn)
        *blocks, (head, head_binding, _) = self._bindings[turn]
        for session, binding, _ in blocks:
            session.run_with_iobinding(binding)
        hidden = self._hidden[len(blocks) % 2]  # what the last of them wrote
        if self.last.shape[1] == ids.shape[1]:
            self.last[:] = hidden
        else:
            self.last[:, 0] = hidden[np.arange(len(ids)), appended - 1]
        head_binding.bind_output("logits")  # a buffer of its own: the caller may keep it
        head.run_with_iobinding(head_binding)
        return head_binding.get_outputs()[0].numpy()


def _choose(
    logits: NDArray[np.float32], temperature: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """One token of each row of logits [B, vocab] → [B]."""
    if temperature == 0:
        return logits.argmax(-1).astype(np.int64)
    # The largest of logit / T + Gumbel noise is a draw from the softmax.
    noise = generator.gumbel(size=logits.shape)
    return (logits.astype(np.float64) / temperature + noise).argmax(-1).astype(np.int64)


def _rounded(length: int) -> int:
    return -(-length // CAPACITY_STEP) * CAPACITY_STEP


def _numbers(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    """Of the node's stacked gate and up weights."""
    value = next(value for value in model.graph.input if value.name == node.input[3])
    return math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _make_session(
    bundle: Bundle, threads: int, parts: int | None, block: BundleBlock
) -> ort.InferenceSession | CutSession:
    """A session for the block's kind; of the rewritten graph if there are `parts` to cut the
    experts into.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Sessions run in turns: the threads of one must not spin on while another works. (One pool
    # for all would forbid ordinary sessions to the rest of the process.)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3

    def made(model: onnx.ModelProto) -> ort.InferenceSession:
        graph = model.SerializeToString()
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    model = onnx.load_model_from_string(bundle.graph_path(block.kind, DTYPE).read_bytes())
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
    if node is not None and (node.op_type != "MoeExperts" or _numbers(model, node) > LARGE):
        kept = ELEMENT_TYPES[NUMPY_DTYPES[stored[node.input[3]]]]
        return CutSession(model, kept, rewritten)
    return rewritten(keep_stored(model, mapped))
