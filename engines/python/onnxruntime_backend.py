"""Running a bundle on onnxruntime's CPU provider: float32, on any machine.

One session a block kind, shared by its layers; one IO binding a layer, in which the weights are
bound once and the states stay in place (TensorScatter writes into the buffer it reads).
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from glm_trt.engines.bundle import Bundle, BundleBlock
from glm_trt.model.bindings import bound_tensor
from glm_trt.model.errors import GlmTrtError

Array = NDArray[Any]
DTYPE = "float32"  # onnxruntime's CPU provider has no bfloat16 arithmetic

# Capacity grows in steps: the function bodies score the whole buffer, so it is kept close to
# what is used.
CAPACITY_STEP = 128

_threads_set = False


class _States:
    """The caches of one layer for a batch, of one capacity: {"kv_cache": [B, 1, C, D], …}."""

    def __init__(self, widths: dict[str, int], batch: int, capacity: int) -> None:
        self.arrays: dict[str, Array] = {
            name: np.zeros((batch, 1, capacity, width), np.float32)
            for name, width in widths.items()
        }

    def grow(self, capacity: int) -> None:
        """Keep the content, with room for `capacity` positions."""
        for name, old in self.arrays.items():
            new = np.zeros((old.shape[0], 1, capacity, old.shape[3]), np.float32)
            new[:, :, : old.shape[2]] = old
            self.arrays[name] = new


class OnnxruntimeRuntime:
    """Runs a bundle. Use as a context manager, or call `close`.

    Parameters
    ----------
    bundle : an opened bundle.
    threads : threads of a session, all cores if None.
    """

    dtype = DTYPE

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.bundle = bundle
        self._sessions = _make_sessions(bundle, threads)
        self._weights: dict[str, dict[str, ort.OrtValue]] = {}
        self._arrays: list[Array] = []  # onnxruntime does not keep the mapped arrays alive
        shared: dict[tuple[Any, ...], ort.OrtValue] = {}
        for block in bundle.blocks:
            self._weights[block.name] = {
                binding.name: self._bind(binding, shared) for binding in block.bindings
            }
        config = bundle.config
        self._widths = {"kv_cache": config.kv_lora_rank + config.qk_rope_head_dim}
        self._index_width = config.index_head_dim

    def _bind(self, binding: Any, shared: dict[tuple[Any, ...], ort.OrtValue]) -> ort.OrtValue:
        key = (binding.tensors, binding.transform, tuple(binding.arguments.items()))
        if key not in shared:  # a tied head is the embedding's own tensor
            array = bound_tensor(binding, self.bundle.weights, DTYPE)
            self._arrays.append(array)
            shared[key] = ort.OrtValue.ortvalue_from_numpy(array)
        return shared[key]

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

    def state_widths(self, block: BundleBlock) -> dict[str, int]:
        """Name and last axis of each state of a layer."""
        assert block.layer is not None
        if self.bundle.config.indexer_types[block.layer] == "full":
            return self._widths | {"index_keys": self._index_width}
        return dict(self._widths)

    def run_block(self, block: BundleBlock, inputs: dict[str, Array]) -> dict[str, Array]:
        """One block on copies of its inputs, all outputs by name; what validation compares."""
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
    """The states of a batch of sequences of equal length, and the passes over them."""

    def __init__(self, runtime: OnnxruntimeRuntime, batch: int, capacity: int) -> None:
        self.runtime, self.batch, self.length = runtime, batch, 0
        self.capacity = _rounded(max(capacity, 1))
        self._layers = [block for block in runtime.bundle.blocks if block.layer is not None]
        self._states = [
            _States(runtime.state_widths(block), batch, self.capacity) for block in self._layers
        ]
        self._bindings: list[Any] = []
        self._bound_length = 0  # a binding's output buffers fit one number of new tokens

    def step(self, ids: NDArray[np.int64], all_logits: bool = False) -> NDArray[np.float32]:
        """Append ids [B, S]; logits of the last token [B, 1, vocab], or of all [B, S, vocab].

        Raises
        ------
        GlmTrtError
            If the sequence would outgrow the bundle's `max_seq_len`.
        """
        batch, added = ids.shape
        limit = self.runtime.bundle.max_seq_len
        if self.length + added > limit:
            raise GlmTrtError(
                f"sequence of {self.length + added} tokens: the bundle was exported for "
                f"{limit} (--max-seq-len)"
            )
        self._reserve(self.length + added, added)
        past = ort.OrtValue.ortvalue_from_numpy(np.full(batch, self.length, np.int64))
        embedding, *_, head = self.runtime.bundle.blocks
        fed = {"input_ids": ort.OrtValue.ortvalue_from_numpy(ids), "past_lengths": past}
        hidden, cos, sin = self._run(embedding, fed, ("hidden_out", "cos", "sin"))
        indices = None
        for block, binding in zip(self._layers, self._bindings, strict=True):
            fed = {"hidden": hidden, "cos": cos, "sin": sin, "past_lengths": past}
            full = "index_keys" in self.runtime.state_widths(block)
            if not full:
                fed["shared_indices"] = indices
            for name, value in fed.items():
                binding.bind_ortvalue_input(name, value)
            self.runtime._sessions[block.kind].run_with_iobinding(binding)
            outputs = binding.get_outputs()
            hidden = outputs[0]
            indices = outputs[1] if full else indices
        self.length += added
        if not all_logits and added > 1:
            hidden = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(hidden.numpy()[:, -1:]))
        (logits,) = self._run(head, {"hidden": hidden}, ("logits",))
        return logits.numpy()

    def _run(self, block: BundleBlock, fed: dict[str, Any], outputs: tuple[str, ...]) -> list[Any]:
        session = self.runtime._sessions[block.kind]
        binding = session.io_binding()
        for name, value in (self.runtime._weights[block.name] | fed).items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        return list(binding.get_outputs())

    def _reserve(self, length: int, added: int) -> None:
        if length > self.capacity:
            self.capacity = _rounded(length)
            for states in self._states:
                states.grow(self.capacity)
            self._bindings = []
        if not self._bindings or added != self._bound_length:
            self._bound_length = added
            self._bindings = [
                self._layer_binding(block, states)
                for block, states in zip(self._layers, self._states, strict=True)
            ]

    def _layer_binding(self, block: BundleBlock, states: _States) -> Any:
        session = self.runtime._sessions[block.kind]
        binding = session.io_binding()
        for name, value in self.runtime._weights[block.name].items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("hidden_out")
        if "index_keys" in states.arrays:
            binding.bind_output("topk_indices")
        for name, array in states.arrays.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"{name}_out", value)
        return binding


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


def _make_sessions(bundle: Bundle, threads: int | None) -> dict[str, ort.InferenceSession]:
    # One pool for all sessions: a pool each would spin against one another on few cores.
    global _threads_set
    if not _threads_set:
        ort.set_global_thread_pool_sizes(threads or os.cpu_count() or 1, 1)
        _threads_set = True
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return {
        kind: ort.InferenceSession(
            bundle.graph_path(kind, DTYPE).read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        for kind in bundle.kinds
    }
