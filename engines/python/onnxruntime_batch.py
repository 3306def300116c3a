"""States and passes of the onnxruntime backend: buffers bound once, caches written in place.

Where the buffers live, on the host or on a device, is known to `Memory` alone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.python.backend import Array, Kept, RowState, check_room
from glm_trt.engines.python.memory import Memory
from glm_trt.engines.python.values import array_of
from glm_trt.export.bundle.format import Block
from glm_trt.model.states import StateSpec, input_dtype

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

    def __init__(
        self, backend: OnnxruntimeBackend, specs: tuple[StateSpec, ...], rows: int, capacity: int
    ) -> None:
        self._memory, self._dtype = backend.memory, backend.dtype
        self._specs, self._rows = specs, rows
        self._buffers: dict[str, list[Any]] = {
            spec.name: [self._empty(spec, capacity) for _ in range(1 if spec.has_capacity else 2)]
            for spec in specs
        }

    def _empty(self, spec: StateSpec, capacity: int) -> Any:
        dtype = input_dtype(spec.name, self._dtype)
        return self._memory.zeros(spec.shape(self._rows, capacity), dtype)

    @property
    def has_turns(self) -> bool:
        """Whether any state is read and written by turns."""
        return any(len(buffers) == 2 for buffers in self._buffers.values())

    def views(self, turn: int, rows: slice, capacity: int) -> dict[str, Any]:
        """What passes of this turn (0 or 1) read and those of the other write, by name. One row may
        see less than the whole capacity.
        """
        views = {}
        for spec in self._specs:
            buffers = self._buffers[spec.name]
            length = capacity if spec.has_capacity else None
            views[spec.name] = self._memory.view(buffers[turn % len(buffers)], rows, length)
        return views

    def grow(self, capacity: int) -> None:
        """Keep the content, with room for `capacity` positions."""
        for spec in self._specs:
            if spec.has_capacity:
                (old,) = self._buffers[spec.name]
                new = self._empty(spec, capacity)
                for row in range(self._rows):
                    content = self._memory.view(old, slice(row, row + 1))
                    room = self._memory.view(new, slice(row, row + 1), old.shape[2])
                    self._memory.copy(room, content)
                self._buffers[spec.name] = [new]

    def copy(self, source: int, target: int, turn: int, target_turn: int, length: int) -> None:
        """The states of a row to another row, or to the same row's other turn."""
        read = self.views(turn, slice(source, source + 1), length)
        written = self.views(target_turn, slice(target, target + 1), length)
        for name, array in written.items():
            self._memory.copy(array, read[name])

    def clear(self, row: int) -> None:
        """Begin anew. Caches stay: what lies behind the length is never read."""
        for spec in self._specs:
            if not spec.has_capacity:
                for buffer in self._buffers[spec.name]:
                    self._memory.clear(self._memory.view(buffer, slice(row, row + 1)))

    def save(self, row: int, turn: int, length: int) -> dict[str, Array]:
        """Copies of a row's states."""
        views = self.views(turn, slice(row, row + 1), length)
        return {name: self._memory.get(view)[0] for name, view in views.items()}

    def restore(self, row: int, turn: int, arrays: dict[str, Array], length: int) -> None:
        """Write what `save` gave, the first `length` positions of it."""
        views = self.views(turn, slice(row, row + 1), length)
        for spec in self._specs:
            array = arrays[spec.name]
            array = array[:, :length] if spec.has_capacity else array
            self._memory.put(views[spec.name], array[None])


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
            block.name: _LayerStates(backend, self._bundle.states(block), rows, self._capacity)
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
        return prediction.run(ids, before.last, past, np.ones(len(ids), np.int64))

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
        self._backend, self._states, self._memory = backend, states, backend.memory
        self.rows, self.capacity = slice(first, first + count), capacity
        self.ids = np.zeros((count, added), np.int64)
        self.past, self.appended = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._wide = (count, added, config.hidden_size)
        angles = (count, added, config.qk_rope_head_dim // 2)
        numbers = {"input_ids": self.ids, "past_lengths": self.past, "lengths": self.appended}
        # All that a pass sends to where the sessions run.
        self._sent = {name: (self._memory.mirror(x), x) for name, x in numbers.items()}
        self._shared: dict[str, Any] = {name: mirror for name, (mirror, _) in self._sent.items()}
        self._shared |= {name: self._zeros(angles) for name in ("cos", "sin")}
        # Of the latest layer with an indexer, for those behind it that have none.
        selected = (count, added, min(config.index_topk, capacity))
        self._indices = self._memory.zeros(selected, "int32")

    def _zeros(self, shape: tuple[int, ...]) -> Any:
        return self._memory.zeros(shape, self._backend.dtype)

    def set(self, ids: Array, past: Array, appended: Array) -> None:
        """What the next run is about."""
        self.ids[:], self.past[:], self.appended[:] = ids, past, appended
        for mirror, array in self._sent.values():
            self._memory.send(mirror, array)

    def bind(self, block: Block, inputs: dict[str, Any], outputs: dict[str, Any],
             turn: int = 0) -> _Work:  # fmt: skip
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
        return _Work(self._memory, session, weights, inputs, outputs)


class _Work:
    """A session with all that it reads and writes, to be run again and again."""

    def __init__(
        self, memory: Memory, session: Any, weights: dict[str, Any],
        inputs: dict[str, Any], outputs: dict[str, Any],
    ) -> None:  # fmt: skip
        self._memory, self._session = memory, session
        self._binding = session.io_binding()
        for name, value in weights.items():
            self._binding.bind_ortvalue_input(name, value)
        # onnxruntime keeps no array alive.
        names = [value.name for value in session.get_inputs()]
        self._inputs = {name: inputs[name] for name in names if name in inputs}
        made = [value.name for value in session.get_outputs()]
        self._outputs = {name: outputs[name] for name in made if name in outputs}
        for name, array in self._inputs.items():
            memory.bind_input(self._binding, name, array)
        for name, array in self._outputs.items():
            memory.bind_output(self._binding, name, array)

    def run(self) -> None:
        """Once more, on what the arrays hold now."""
        self._memory.bind_again(self._binding, self._inputs)
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> dict[str, Array]:
        """Copies of what the latest run made, by name."""
        return {name: self._memory.get(array) for name, array in self._outputs.items()}

    def logits(self) -> NDArray[np.float32]:
        """Those of a head, in a buffer of their own: the caller may keep it."""
        self._binding.bind_output("logits")
        self.run()
        logits = array_of(self._binding.get_outputs()[0])
        return logits.astype(np.float32, copy=False)


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
        self._hidden = [self._zeros(self._wide) for _ in range(2)]
        self._kept = kept
        self._given = self._zeros((count, kept, self._wide[2]))  # to the head
        self._turns: dict[int, list[_Work]] = {}  # bindings of a turn, made when it first comes
        self._bound_head: _Work | None = None

    @property
    def hidden(self) -> Any:
        """What the last layer gave in the latest run [n, S, hidden]."""
        return self._hidden[len(self._blocks) % 2]

    def run(self, ids: Array, past: Array, appended: Array, turn: int) -> None:
        """Every block but the head: of ids [n, S], `appended` [n] follow the `past` [n] ones."""
        self.set(ids, past, appended)
        if turn not in self._turns:
            self._turns[turn] = self._bind_all(turn)
        for block, work in zip(self._blocks, self._turns[turn], strict=True):
            work.run()
            if self._backend.watch is not None:
                self._backend.watch(block.name, work.outputs())

    def _bind_all(self, turn: int) -> list[_Work]:
        cos, sin = self._shared["cos"], self._shared["sin"]
        bound = []
        for i, block in enumerate(self._blocks):
            hidden, hidden_out = self._hidden[i % 2], self._hidden[1 - i % 2]
            outputs = {"hidden_out": hidden_out, "cos": cos, "sin": sin}
            bound.append(self.bind(block, {"hidden": hidden}, outputs, turn))
        return bound

    def logits(self, appended: Array) -> NDArray[np.float32]:
        """The head on what the latest run gave: [n, kept, vocab]."""
        count, added = self.ids.shape
        if self._kept == 0:
            return np.zeros((count, 0, self._backend.bundle.config.vocab_size), np.float32)
        if self._kept == added:
            self._memory.copy(self._given, self.hidden)
        else:
            self._memory.pick(self._given, self.hidden, appended - 1)
        if self._bound_head is None:
            self._bound_head = self.bind(self._head, {"hidden": self._given}, {})
        return self._bound_head.logits()


class _Prediction(_Bound):
    """Passes of the prediction layer and its head."""

    def __init__(
        self, backend: OnnxruntimeBackend, states: dict[str, _LayerStates],
        first: int, count: int, added: int, capacity: int,
    ) -> None:  # fmt: skip
        super().__init__(backend, states, first, count, added, capacity)
        layer, head = backend.bundle.prediction_blocks[:2]
        embedded, given, made = (self._zeros(self._wide) for _ in range(3))
        self.last = self._zeros((count, 1, self._wide[2]))
        self._given, self._made = given, made
        angles = {name: self._shared[name] for name in ("cos", "sin")}
        self._bound = [
            self.bind(backend.bundle.blocks[0], {}, {"hidden_out": embedded, **angles}),
            self.bind(layer, {"hidden": given, "embedded": embedded}, {"hidden_out": made}),
        ]
        self._head = self.bind(head, {"hidden": self.last}, {})

    def run(self, ids: Array, hidden: Any, past: Array, appended: Array) -> NDArray[np.float32]:
        """Logits [n, 1, vocab] behind the last of the `appended` [n] places, from their hidden
        [n, S, hidden] and the ids [n, S] that follow them.
        """
        self.set(ids, past, appended)
        self._memory.copy(self._given, hidden)
        for work in self._bound:
            work.run()
        self._memory.pick(self.last, self._made, appended - 1)
        return self._head.logits()


def _rounded(length: int) -> int:
    return -(-length // CAPACITY_STEP) * CAPACITY_STEP
