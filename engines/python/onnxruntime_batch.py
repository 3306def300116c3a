"""States and passes of the onnxruntime backend: buffers bound once, caches written in place."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.bundle import BundleBlock
from glm_trt.engines.python.backend import Array, Kept, RowState, check_room
from glm_trt.engines.python.onnxruntime_module import ort
from glm_trt.model.states import StateSpec

if TYPE_CHECKING:
    from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend

# Capacity grows in steps: the function bodies score the whole buffer, so what a pass sees of it is
# kept close to what is used.
CAPACITY_STEP = 128
PASSES_KEPT = 4  # bindings of passes that come again: decoding, verifying a draft, predicting


class _LayerStates:
    """The states of one layer for a batch.

    A cache has one buffer, which a pass writes in place (TensorScatter). Any other state has two,
    read and written by turns: a node may still read what another one would have overwritten.
    """

    def __init__(self, specs: tuple[StateSpec, ...], rows: int, capacity: int) -> None:
        self._specs, self._rows = specs, rows
        self._buffers: dict[str, list[Array]] = {
            spec.name: [
                np.zeros(spec.shape(rows, capacity), np.float32)
                for _ in range(1 if spec.has_capacity else 2)
            ]
            for spec in specs
        }

    @property
    def has_turns(self) -> bool:
        """Whether any state is read and written by turns."""
        return any(len(buffers) == 2 for buffers in self._buffers.values())

    def views(self, turn: int, rows: slice, capacity: int) -> dict[str, Array]:
        """What passes of this turn (0 or 1) read and those of the other write, by name. One row may
        see less than the whole capacity.
        """
        views = {}
        for spec in self._specs:
            buffers = self._buffers[spec.name]
            view = buffers[turn % len(buffers)][rows]
            views[spec.name] = view[:, :, :capacity] if spec.has_capacity else view
        return views

    def grow(self, capacity: int) -> None:
        """Keep the content, with room for `capacity` positions."""
        for spec in self._specs:
            if spec.has_capacity:
                (old,) = self._buffers[spec.name]
                new = np.zeros(spec.shape(self._rows, capacity), np.float32)
                new[:, :, : old.shape[2]] = old
                self._buffers[spec.name] = [new]

    def copy(self, source: int, target: int, turn: int, target_turn: int, length: int) -> None:
        """The states of a row to another row, or to the same row's other turn."""
        for spec in self._specs:
            buffers = self._buffers[spec.name]
            read, written = buffers[turn % len(buffers)], buffers[target_turn % len(buffers)]
            if spec.has_capacity:
                written[target, :, :length] = read[source, :, :length]
            else:
                written[target] = read[source]

    def clear(self, row: int) -> None:
        """Begin anew. Caches stay: what lies behind the length is never read."""
        for spec in self._specs:
            if not spec.has_capacity:
                for buffer in self._buffers[spec.name]:
                    buffer[row] = 0

    def save(self, row: int, turn: int, length: int) -> dict[str, Array]:
        """Copies of a row's states."""
        views = self.views(turn, slice(row, row + 1), length)
        return {name: view[0].copy() for name, view in views.items()}

    def restore(self, row: int, turn: int, arrays: dict[str, Array], length: int) -> None:
        """Write what `save` gave, the first `length` positions of it."""
        views = self.views(turn, slice(row, row + 1), length)
        for spec in self._specs:
            array = arrays[spec.name]
            views[spec.name][0] = array[:, :length] if spec.has_capacity else array


class OnnxruntimeBatch:
    """See `Batch`, which says what every method does."""

    def __init__(
        self, backend: OnnxruntimeBackend, rows: int, capacity: int, predict: bool
    ) -> None:
        self._backend, self._bundle = backend, backend.bundle
        self.lengths = np.zeros(rows, np.int64)
        self._prediction_lengths = np.zeros(rows, np.int64)
        self._turns = np.zeros(rows, np.int64)
        self._capacity = self._wanted = _rounded(max(capacity, 1))
        blocks = [*self._bundle.blocks, *(self._bundle.prediction_blocks if predict else ())]
        self._states = {
            block.name: _LayerStates(self._bundle.states(block), rows, self._capacity)
            for block in blocks
        }
        self._has_turns = any(states.has_turns for states in self._states.values())
        self._passes: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._latest: _Pass | None = None
        self._latest_prediction: _Prediction | None = None

    def step(
        self, ids: Array, lengths: Array | None = None, *, first: int = 0, logits: Kept = "last"
    ) -> NDArray[np.float32]:
        """As in `Batch`."""
        count, added = ids.shape
        rows = slice(first, first + count)
        past = self.lengths[rows].copy()
        appended = np.full(count, added) if lengths is None else np.asarray(lengths)
        check_room(past, appended, self._bundle.max_seq_len)
        capacity = self._reserve(rows, int(past.max()) + added)  # padding is written too
        kept = {"none": 0, "last": 1, "all": added}[logits]
        key = ("step", first, count, added, kept, capacity)
        latest = self._pass(key, lambda: _Pass(self._backend, self._states, *key[1:]))
        self._latest = latest
        self.align(count, first=first)
        latest.run(ids, past, appended, int(self._turns[first]))
        self.lengths[rows] = past + appended
        self._turns[rows] ^= self._has_turns
        return latest.logits(appended)

    def keep(self, counts: Array) -> None:
        """As in `Batch`."""
        latest = self._latest
        assert latest is not None
        rows = latest.rows
        if self._has_turns and (counts != latest.appended).any():
            # What the pass read is still in the other buffers.
            latest.run(latest.ids, latest.past, counts, int(self._turns[rows][0]) ^ 1)
        self.lengths[rows] = latest.past + counts

    def predict(self, following: Array, lengths: Array) -> NDArray[np.float32]:
        """As in `Batch`."""
        latest = self._latest
        assert latest is not None
        count, added = following.shape
        past = self._prediction_lengths[latest.rows].copy()
        assert (past == latest.past).all(), "every step is to be predicted from"
        prediction = self._prediction(latest.rows.start, count, added, latest.capacity)
        found = prediction.run(following, latest.hidden, past, lengths)
        self._prediction_lengths[latest.rows] = past + lengths
        return found

    def predict_further(self, ids: Array) -> NDArray[np.float32]:
        """As in `Batch`."""
        before = self._latest_prediction
        assert before is not None
        # As if they had been appended, which lasts until the next `predict`.
        past = before.past + before.appended
        capacity = self._reserve(before.rows, int(past.max()) + 1)
        prediction = self._prediction(before.rows.start, len(ids), 1, capacity)
        return prediction.run(ids, before.last.copy(), past, np.ones(len(ids), np.int64))

    def align(self, count: int, *, first: int = 0) -> None:
        """As in `Batch`: rows whose states are in the other turn's buffers than the first one's are
        copied.
        """
        turns = self._turns[first : first + count]
        turn = int(turns[0])
        for row in (first + np.flatnonzero(turns != turn)).tolist():
            for states in self._states.values():
                states.copy(row, row, turn ^ 1, turn, 0)
            self._turns[row] = turn

    def standing(self) -> tuple[Array, Array, Array]:
        """As in `Batch`. A pass writes caches behind the length and other states to the buffers of
        the other turn, so that the numbers alone lead back.
        """
        return self.lengths.copy(), self._prediction_lengths.copy(), self._turns.copy()

    def return_to(self, standing: tuple[Array, Array, Array]) -> None:
        """As in `Batch`."""
        self.lengths[:], self._prediction_lengths[:], self._turns[:] = standing

    def clear(self, row: int) -> None:
        """As in `Batch`."""
        self.lengths[row] = self._prediction_lengths[row] = self._turns[row] = 0
        for states in self._states.values():
            states.clear(row)

    def move(self, source: int, target: int) -> None:
        """As in `Batch`."""
        turn, length = int(self._turns[source]), int(self.lengths[source])
        for states in self._states.values():
            states.copy(source, target, turn, turn, length)
        for numbers in (self.lengths, self._prediction_lengths, self._turns):
            numbers[target] = numbers[source]

    def save(self, row: int) -> RowState:
        """As in `Batch`."""
        turn, length = int(self._turns[row]), int(self.lengths[row])
        arrays = {name: s.save(row, turn, length) for name, s in self._states.items()}
        return RowState(length, int(self._prediction_lengths[row]), arrays, not self._has_turns)

    def restore(self, row: int, state: RowState, length: int, prediction_length: int) -> None:
        """As in `Batch`."""
        assert state.cuttable or length == state.length
        self._reserve(slice(row, row + 1), length)
        self.clear(row)
        for name, states in self._states.items():
            states.restore(row, 0, state.arrays[name], length)
        self.lengths[row], self._prediction_lengths[row] = length, prediction_length

    def _reserve(self, rows: slice, length: int) -> int:
        """Make room for `length` positions; how many a pass over `rows` should see."""
        if length > self._wanted:
            # One row sees but what it needs, so it may have more to spare.
            spare = length // 8 if len(self.lengths) == 1 else 0
            self._wanted = _rounded(length + spare)
        if self._capacity != self._wanted:  # also where growing was broken off
            self._passes.clear()
            for states in self._states.values():
                states.grow(self._wanted)
            self._capacity = self._wanted
        single = rows.stop - rows.start == 1
        return min(_rounded(length), self._capacity) if single else self._capacity

    def _pass(self, key: tuple[Any, ...], make: Any) -> Any:
        if key not in self._passes:
            self._passes[key] = make()
            if len(self._passes) > PASSES_KEPT:
                self._passes.popitem(last=False)
        self._passes.move_to_end(key)
        return self._passes[key]

    def _prediction(self, first: int, count: int, added: int, capacity: int) -> _Prediction:
        key = ("predict", first, count, added, capacity)
        found: _Prediction = self._pass(
            key, lambda: _Prediction(self._backend, self._states, *key[1:])
        )
        self._latest_prediction = found
        return found


class _Bound:
    """Buffers and bindings of passes over `count` rows of `added` tokens."""

    def __init__(
        self, backend: OnnxruntimeBackend, states: dict[str, _LayerStates],
        first: int, count: int, added: int, capacity: int,
    ) -> None:  # fmt: skip
        config = backend.bundle.config
        self._backend, self._states = backend, states
        self.rows, self.capacity = slice(first, first + count), capacity
        self.ids = np.zeros((count, added), np.int64)
        self.past, self.appended = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._wide = (count, added, config.hidden_size)
        angles = (count, added, config.qk_rope_head_dim // 2)
        self._shared: dict[str, Array] = {
            "input_ids": self.ids,
            "cos": np.zeros(angles, np.float32),
            "sin": np.zeros(angles, np.float32),
            "past_lengths": self.past,
            "lengths": self.appended,
        }
        # Of the latest layer with an indexer, for those behind it that have none.
        self._indices = np.zeros((count, added, min(config.index_topk, capacity)), np.int32)

    def set(self, ids: Array, past: Array, appended: Array) -> None:
        """What the next run is about."""
        self.ids[:], self.past[:], self.appended[:] = ids, past, appended

    def bind(self, block: BundleBlock, inputs: dict[str, Array], outputs: dict[str, Array],
             turn: int = 0) -> Any:  # fmt: skip
        """Bind those of the arrays that the block has, with its states."""
        states = self._states.get(block.name)
        read, written = (
            {} if states is None else states.views(t, self.rows, self.capacity)
            for t in (turn, 1 - turn)
        )
        inputs = self._shared | {"shared_indices": self._indices} | inputs | read
        outputs = {"topk_indices": self._indices} | outputs
        outputs |= {f"{name}_out": array for name, array in written.items()}
        session, weights = self._backend.session(block)
        binding = session.io_binding()
        for name, value in weights.items():
            binding.bind_ortvalue_input(name, value)
        for value in session.get_inputs():
            if value.name in inputs:
                array = ort.OrtValue.ortvalue_from_numpy(inputs[value.name])
                binding.bind_ortvalue_input(value.name, array)
        for output in session.get_outputs():
            if output.name in outputs:
                value = ort.OrtValue.ortvalue_from_numpy(outputs[output.name])
                binding.bind_ortvalue_output(output.name, value)
        return session, binding, [inputs, outputs]  # onnxruntime keeps no array alive

    def run_head(self, bound: Any) -> NDArray[np.float32]:
        """The logits, in a buffer of their own: the caller may keep it."""
        session, binding, _ = bound
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()
        return logits


class _Pass(_Bound):
    """Passes of `added` tokens through the blocks, with `kept` of their logits.

    The layers' hidden states go to two buffers by turns, so that a pass is nothing but the
    sessions' runs.
    """

    def __init__(
        self, backend: OnnxruntimeBackend, states: dict[str, _LayerStates],
        first: int, count: int, added: int, kept: int, capacity: int,
    ) -> None:  # fmt: skip
        super().__init__(backend, states, first, count, added, capacity)
        *self._blocks, self._head = backend.bundle.blocks
        self._hidden = [np.zeros(self._wide, np.float32) for _ in range(2)]
        self._given = np.zeros((count, kept, self._wide[2]), np.float32)  # to the head
        self._turns: dict[int, list[Any]] = {}  # bindings of a turn, made when it first comes
        self._bound_head: Any = None

    @property
    def hidden(self) -> Array:
        """What the last layer gave in the latest run [n, S, hidden]."""
        return self._hidden[len(self._blocks) % 2]

    def run(self, ids: Array, past: Array, appended: Array, turn: int) -> None:
        """Every block but the head: of ids [n, S], `appended` [n] follow the `past` [n] ones."""
        self.set(ids, past, appended)
        if turn not in self._turns:
            self._turns[turn] = self._bind_all(turn)
        for session, binding, _ in self._turns[turn]:
            session.run_with_iobinding(binding)

    def _bind_all(self, turn: int) -> list[Any]:
        cos, sin = self._shared["cos"], self._shared["sin"]
        bound = []
        for i, block in enumerate(self._blocks):
            hidden, hidden_out = self._hidden[i % 2], self._hidden[1 - i % 2]
            outputs = {"hidden_out": hidden_out, "cos": cos, "sin": sin}
            bound.append(self.bind(block, {"hidden": hidden}, outputs, turn))
        return bound

    def logits(self, appended: Array) -> NDArray[np.float32]:
        """The head on what the latest run gave: [n, kept, vocab]."""
        count, kept, _ = self._given.shape
        if kept == 0:
            return np.zeros((count, 0, self._backend.bundle.config.vocab_size), np.float32)
        if kept == self.ids.shape[1]:
            self._given[:] = self.hidden
        else:
            self._given[:, 0] = self.hidden[np.arange(count), appended - 1]
        if self._bound_head is None:
            self._bound_head = self.bind(self._head, {"hidden": self._given}, {})
        return self.run_head(self._bound_head)


class _Prediction(_Bound):
    """Passes of the prediction layer and its head."""

    def __init__(
        self, backend: OnnxruntimeBackend, states: dict[str, _LayerStates],
        first: int, count: int, added: int, capacity: int,
    ) -> None:  # fmt: skip
        super().__init__(backend, states, first, count, added, capacity)
        layer, head = backend.bundle.prediction_blocks[:2]
        embedded, given, made = (np.zeros(self._wide, np.float32) for _ in range(3))
        self.last = np.zeros((count, 1, self._wide[2]), np.float32)
        self._given, self._made = given, made
        angles = {name: self._shared[name] for name in ("cos", "sin")}
        self._bound = [
            self.bind(backend.bundle.blocks[0], {}, {"hidden_out": embedded, **angles}),
            self.bind(layer, {"hidden": given, "embedded": embedded}, {"hidden_out": made}),
        ]
        self._head = self.bind(head, {"hidden": self.last}, {})

    def run(self, ids: Array, hidden: Array, past: Array, appended: Array) -> NDArray[np.float32]:
        """Logits [n, 1, vocab] behind the last of the `appended` [n] places, from their hidden
        [n, S, hidden] and the ids [n, S] that follow them.
        """
        self.set(ids, past, appended)
        self._given[:] = hidden
        for session, binding, _ in self._bound:
            session.run_with_iobinding(binding)
        self.last[:, 0] = self._made[np.arange(len(ids)), appended - 1]
        return self.run_head(self._head)


def _rounded(length: int) -> int:
    return -(-length // CAPACITY_STEP) * CAPACITY_STEP
