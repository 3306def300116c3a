"""States and passes of the TensorRT backend: rows one after another."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.python.backend import Array, Kept, RowState, check_room
from glm_trt.engines.python.device import DeviceMemory, RecordedWork
from glm_trt.engines.python.tensorrt_engine import Stage
from glm_trt.export.bundle.format import Block
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.states import StateSpec, input_dtype

if TYPE_CHECKING:
    from glm_trt.engines.python.tensorrt_backend import TensorrtBackend

# Logits of so many tokens at a time: the vocabulary is wide.
HEAD_TOKENS = 8


class _Row:
    """The states of one sequence on the device.

    A cache has one buffer, written in place. Any other state has two, read and written by turns.
    """

    def __init__(self, backend: TensorrtBackend, blocks: list[Block], predict: bool) -> None:
        self._backend, self._blocks = backend, blocks
        bundle, capacity = backend.bundle, backend.bundle.max_seq_len
        sizes = {}
        for block in blocks:
            for spec in bundle.states(block):
                size = int(np.prod(spec.shape(1, capacity))) * self._dtype(spec).itemsize
                for turn in range(1 if spec.has_capacity else 2):
                    sizes[f"{block.name} {spec.name} {turn}"] = size
        if predict:
            wide = bundle.config.hidden_size * NUMPY_DTYPES[backend.dtype].itemsize
            # What the latest step and the latest prediction gave.
            sizes |= {"given": backend.max_tokens * wide, "made": wide}
        self.memory = DeviceMemory(backend.device, sizes, "the states of a sequence")
        for name, size in sizes.items():  # what was there may be NaN
            backend.device.clear(self.memory.addresses[name], size)
        self.turn = 0
        self.recorded: dict[int, RecordedWork | None] = {}

    def _dtype(self, spec: StateSpec) -> np.dtype[Any]:
        return NUMPY_DTYPES[input_dtype(spec.name, self._backend.dtype)]

    def addresses(self, block: Block, turn: int) -> dict[str, int]:
        """Of the block's states, what a pass of this turn reads and writes."""
        found = {}
        for spec in self._backend.bundle.states(block):
            read, written = (0, 0) if spec.has_capacity else (turn, 1 - turn)
            found[spec.name] = self.memory.addresses[f"{block.name} {spec.name} {read}"]
            found[f"{spec.name}_out"] = self.memory.addresses[f"{block.name} {spec.name} {written}"]
        return found

    def free(self) -> None:
        """Give its memory back, and first what was recorded with the addresses of it."""
        for recorded in self.recorded.values():
            if recorded is not None:
                recorded.close()
        self.recorded.clear()
        self.memory.free()

    def clear(self) -> None:
        """Begin anew. Caches stay: what lies behind the length is never read."""
        for block in self._blocks:
            for spec in self._backend.bundle.states(block):
                if not spec.has_capacity:
                    name = f"{block.name} {spec.name} 0"
                    self._backend.device.clear(self.memory.addresses[name], self.memory.sizes[name])
        self.turn = 0

    def save(self, length: int) -> dict[str, dict[str, Array]]:
        """Copies, those with a capacity cut to the length: their positions lie together."""
        saved: dict[str, dict[str, Array]] = {}
        for block in self._blocks:
            states = saved[block.name] = {}
            for spec in self._backend.bundle.states(block):
                array = np.empty(spec.shape(1, length)[1:], self._dtype(spec))
                address = self.addresses(block, self.turn)[spec.name]
                if array.size:
                    self._backend.device.download(address, array)
                states[spec.name] = array
        return saved

    def restore(self, saved: dict[str, dict[str, Array]], length: int) -> None:
        """Write what `save` gave, the first `length` positions of it."""
        self.clear()
        for block in self._blocks:
            for spec in self._backend.bundle.states(block):
                array = saved[block.name][spec.name]
                array = array[:, :length] if spec.has_capacity else array
                address = self.addresses(block, 0)[spec.name]
                if array.size:
                    contiguous = np.ascontiguousarray(array.astype(self._dtype(spec)))
                    self._backend.device.upload(address, contiguous)


class TensorrtBatch:
    """See `Batch`, which says what every method does."""

    def __init__(self, backend: TensorrtBackend, rows: int, predict: bool) -> None:
        self._backend, self._device, self._predicts = backend, backend.device, predict
        bundle = backend.bundle
        self.lengths = np.zeros(rows, np.int64)
        self._prediction_lengths = np.zeros(rows, np.int64)
        prediction = bundle.prediction_blocks[:2] if predict else []
        states = [block for block in (*bundle.blocks, *prediction) if bundle.states(block)]
        self._rows: list[_Row] = []
        self._all_stages: list[Stage] = []
        with ExitStack() as undo:
            undo.callback(self.free)
            for _ in range(rows):
                self._rows.append(_Row(backend, states, predict))
            self._make_stages(prediction)
            undo.pop_all()
        self._has_turns = any(
            not spec.has_capacity for block in states for spec in bundle.states(block)
        )
        self._wide = bundle.config.hidden_size * NUMPY_DTYPES[backend.dtype].itemsize
        # Of the latest step, by its rows: their number, past lengths and ids.
        self._latest: tuple[slice, Array, list[Array]] = (slice(0, 0), self.lengths[:0], [])
        self._past = self.lengths[:0]

    def _make_stages(self, prediction: list[Block]) -> None:
        """Of the blocks of a pass, and of the prediction layer and its head, if there are any."""
        shared = self._backend.shared
        hidden = [shared["hidden_0"], shared["hidden_1"]]
        *blocks, head = self._backend.bundle.blocks
        self._stages = [
            self._stage(block, {"hidden": hidden[i % 2], "hidden_out": hidden[1 - i % 2]})
            for i, block in enumerate(blocks)
        ]
        self._hidden = hidden[len(blocks) % 2]
        self._head = self._stage(head, {})
        if prediction:
            layer, prediction_head = prediction
            self._embedding = self._stage(blocks[0], {"hidden_out": shared["embedded"]})
            self._layer = self._stage(layer, {"hidden_out": shared["predicted"]})
            self._prediction_head = self._stage(prediction_head, {})

    def _stage(self, block: Block, addresses: dict[str, int]) -> Stage:
        made = self._backend.stage(block, addresses)
        self._all_stages.append(made)
        return made

    def step(
        self, ids: Array, lengths: Array | None = None, *, first: int = 0, logits: Kept = "last"
    ) -> NDArray[np.float32]:
        """As in `Batch`."""
        count, added = ids.shape
        rows = slice(first, first + count)
        past = self.lengths[rows].copy()
        appended = np.full(count, added) if lengths is None else np.asarray(lengths)
        check_room(past, appended, self._backend.bundle.max_seq_len)
        if self._predicts and added > self._backend.max_tokens:
            raise GlmTrtError(
                f"a pass of {added} tokens: the engines take {self._backend.max_tokens}"
            )
        kept = {"none": 0, "last": 1, "all": added}[logits]
        found = np.zeros((count, kept, self._backend.bundle.config.vocab_size), np.float32)
        given = [np.ascontiguousarray(ids[i, :n], np.int64) for i, n in enumerate(appended)]
        for i, row in enumerate(range(first, first + count)):
            self._run(row, given[i], found[i, : len(given[i])] if logits == "all" else found[i])
        self._latest = (rows, past, given)
        return found

    def _run(self, number: int, ids: Array, logits: NDArray[np.float32]) -> None:
        """All of a row's ids, in passes that the engines take; as many logits as are wanted."""
        row, most = self._rows[number], self._backend.max_tokens
        for begin in range(0, len(ids), most):
            part = ids[begin : begin + most]
            self._set(part, int(self.lengths[number]))
            self._queue(row, len(part))
            self.lengths[number] += len(part)
            if self._predicts:
                size = len(part) * self._wide
                self._device.copy(row.memory.addresses["given"], self._hidden, size)
            if len(logits) == len(ids):
                self._project(self._head, self._hidden, 0, logits[begin : begin + len(part)])
            elif len(logits) and begin + most >= len(ids):
                self._project(self._head, self._hidden, len(part) - 1, logits)

    def _set(self, ids: Array, past: int) -> None:
        """What the next passes are about."""
        shared = self._backend.shared
        self._device.upload(shared["input_ids"], ids)
        self._device.upload(shared["past_lengths"], np.array([past]))
        if "lengths" in shared:
            self._device.upload(shared["lengths"], np.array([len(ids)]))

    def _queue(self, row: _Row, tokens: int) -> None:
        """Every block but the head; steps of one token are recorded, to be replayed."""
        turn = row.turn

        def work() -> None:
            for stage in self._stages:
                stage.run(tokens, row.addresses(stage.block, turn))

        if tokens > 1:
            work()
        elif turn not in row.recorded:
            work()  # TensorRT may do some work at a first run that cannot be recorded
            row.recorded[turn] = self._device.record(work)
        elif (recorded := row.recorded[turn]) is not None:
            recorded()
        else:
            work()
        row.turn ^= self._has_turns

    @property
    def replays(self) -> bool:
        """Whether steps of one token are replayed as they were recorded, on every row."""
        recorded = [x for row in self._rows for x in row.recorded.values()]
        return bool(recorded) and None not in recorded

    def _project(self, head: Stage, hidden: int, first: int, logits: NDArray[np.float32]) -> None:
        """Logits [n, vocab] of n tokens from `first` on, which lie at `hidden`."""
        most = min(HEAD_TOKENS, head.engine.max_tokens)
        shared = self._backend.shared
        for begin in range(0, len(logits), most):
            count = min(most, len(logits) - begin)
            # To a place that is aligned, as a token in the midst of others need not be.
            source = hidden + (first + begin) * self._wide
            self._device.copy(shared["projected"], source, count * self._wide)
            head.run(count, {"hidden": shared["projected"]})
            raw = np.empty((count, logits.shape[1]), NUMPY_DTYPES[self._backend.dtype])
            self._device.download(shared["logits"], raw)
            logits[begin : begin + count] = raw

    def keep(self, counts: Array) -> None:
        """As in `Batch`."""
        rows, past, given = self._latest
        for i, number in enumerate(range(rows.start, rows.stop)):
            count, row = int(counts[i]), self._rows[number]
            if self._has_turns and count != len(given[i]):
                row.turn ^= 1  # what the pass read is still in the other buffers
                if count:
                    self._set(given[i][:count], int(past[i]))
                    self._queue(row, count)
            self.lengths[number] = past[i] + count

    def predict(self, following: Array, lengths: Array) -> NDArray[np.float32]:
        """As in `Batch`."""
        rows, past, _ = self._latest
        assert (self._prediction_lengths[rows] == past).all(), "every step is to be predicted from"
        found = np.zeros((len(following), 1, self._backend.bundle.config.vocab_size), np.float32)
        for i, number in enumerate(range(rows.start, rows.stop)):
            count = int(lengths[i])
            if count:
                ids = np.ascontiguousarray(following[i, :count], np.int64)
                given = self._rows[number].memory.addresses["given"]
                self._predict(number, ids, given, int(past[i]), found[i])
        self._prediction_lengths[rows] = past + lengths
        self._past = self._prediction_lengths[rows].copy()
        return found

    def predict_further(self, ids: Array) -> NDArray[np.float32]:
        """As in `Batch`; a row that has no room left gets zeros."""
        rows, _, _ = self._latest
        found = np.zeros((len(ids), 1, self._backend.bundle.config.vocab_size), np.float32)
        for i, number in enumerate(range(rows.start, rows.stop)):
            if self._past[i] < self._backend.bundle.max_seq_len:
                made = self._rows[number].memory.addresses["made"]
                one = np.ascontiguousarray(ids[i], np.int64)
                self._predict(number, one, made, int(self._past[i]), found[i])
        self._past = self._past + 1
        return found

    def _predict(
        self, number: int, ids: Array, hidden: int, past: int, logits: NDArray[np.float32]
    ) -> None:
        """The prediction layer on a row's hidden, which ids follow, and its head on the last."""
        row, predicted = self._rows[number], self._backend.shared["predicted"]
        self._set(ids, past)
        self._embedding.run(len(ids), {})
        states = row.addresses(self._layer.block, 0)
        self._layer.run(len(ids), {"hidden": hidden, **states})
        last = predicted + (len(ids) - 1) * self._wide
        self._device.copy(row.memory.addresses["made"], last, self._wide)
        self._project(self._prediction_head, predicted, len(ids) - 1, logits)

    def free(self) -> None:
        """Give back the states' memory and what the stages hold."""
        for row in self._rows:
            row.free()
        for stage in self._all_stages:
            stage.close()

    def align(self, count: int, *, first: int = 0) -> None:
        """As in `Batch`: nothing to do, as each row has passes of its own."""

    def standing(self) -> tuple[list[tuple[_Row, int]], Array, Array]:
        """As in `Batch`. A pass writes caches behind the length and other states to the buffers of
        the other turn, so that rows, turns and lengths lead back.
        """
        rows = [(row, row.turn) for row in self._rows]
        return rows, self.lengths.copy(), self._prediction_lengths.copy()

    def return_to(self, standing: tuple[list[tuple[_Row, int]], Array, Array]) -> None:
        """As in `Batch`."""
        self._device.abandon()
        rows, self.lengths[:], self._prediction_lengths[:] = standing
        self._rows[:] = [row for row, _ in rows]
        for row, turn in rows:
            row.turn = turn

    def clear(self, row: int) -> None:
        """As in `Batch`."""
        self.lengths[row] = self._prediction_lengths[row] = 0
        self._rows[row].clear()

    def move(self, source: int, target: int) -> None:
        """As in `Batch`: rows change places, no state is copied."""
        rows = self._rows
        rows[source], rows[target] = rows[target], rows[source]
        for numbers in (self.lengths, self._prediction_lengths):
            numbers[target] = numbers[source]

    def save(self, row: int) -> RowState:
        """As in `Batch`."""
        length = int(self.lengths[row])
        arrays = self._rows[row].save(length)
        predicted = int(self._prediction_lengths[row])
        return RowState(length, predicted, arrays, not self._has_turns)

    def restore(self, row: int, state: RowState, length: int, prediction_length: int) -> None:
        """As in `Batch`."""
        assert state.cuttable or length == state.length
        self._rows[row].restore(state.arrays, length)
        self.lengths[row], self._prediction_lengths[row] = length, prediction_length
