"""What a saved run keeps of a backend's outputs, to say how far two runs are from one another.

The verdict on each is in what was measured; of the outputs themselves rows and columns are sampled
where there are many, the same ones in every run, with a hash of the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.states import STATE_AXES
from glm_trt.validate.judging.choices import CHOSEN_BY
from glm_trt.validate.running.walk import Observation

Array = NDArray[Any]
Arrays = dict[str, Array]
# Of an output, so many rows (a pass has up to 512 tokens a sequence) and columns: a relative L2
# difference over a sample of 128 columns is that of all within a tenth or so.
MOST_ROWS, MOST_COLUMNS = 4096, 128
LIKELIEST = 5


@dataclass(frozen=True)
class Kept:
    """What is kept of one isolated run or probe of one block.

    Attributes
    ----------
    place, phase : as the observation's.
    hashes : output → SHA-256 of all its values.
    values : output → the sampled rows and columns [rows, columns].
    sets : what was chosen → a hash [T] of each token's set; of "logits" the likeliest ids, the
        likeliest first [T, 5].
    counted : tokens [T] that are no padding, all if None.
    """

    block: str
    place: str
    phase: str
    hashes: dict[str, str]
    values: Arrays
    sets: Arrays
    counted: NDArray[np.bool_] | None = None

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """All arrays with a name for each, which `with_arrays` takes."""
        yield from ((f"values/{name}", array) for name, array in self.values.items())
        yield from ((f"sets/{name}", array) for name, array in self.sets.items())
        if self.counted is not None:
            yield "counted", self.counted

    def rows_of(self, output: str, equal: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Which of the kept rows of an output to compare, all if None.

        Parameters
        ----------
        equal : tokens [T] that chose alike: outputs of others are not comparable, states are.
        """
        counted = self.counted
        if output.removesuffix("_out") in STATE_AXES:
            has_capacity = "capacity" in STATE_AXES[output.removesuffix("_out")]
            counted = counted if has_capacity else None
        elif equal is not None:
            counted = equal if counted is None else counted & equal
        return None if counted is None else counted[_sampled(len(counted), MOST_ROWS)]


def keep(seen: Observation) -> Kept:
    """What to keep of an isolated run or a probe."""
    found = seen.tensors["found"]
    values: Arrays = {}
    sets: Arrays = {}
    hashes = {}
    for name, array in found.items():
        hashes[name] = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        if name in CHOSEN_BY:
            sets[name] = _set_hashes(array.reshape(-1, array.shape[-1]))
            continue
        flat = array.reshape(-1, array.shape[-1])
        rows, columns = _sampled(len(flat), MOST_ROWS), _sampled(flat.shape[1], MOST_COLUMNS)
        values[name] = flat[rows][:, columns]
        if name == "logits":
            sets[name] = _likeliest(flat)
    counted = None if seen.rows is None else seen.rows.ravel()
    return Kept(seen.block, seen.place, seen.phase, hashes, values, sets, counted)


def with_arrays(entry: dict[str, Any], arrays: Arrays) -> Kept:
    """What was kept: `entry` has the other attributes."""
    groups: dict[str, Arrays] = {"values": {}, "sets": {}}
    for key, array in arrays.items():
        group, _, name = key.partition("/")
        if group != "counted":
            groups[group][name] = array
    return Kept(
        entry["block"], entry["place"], entry["phase"], entry["hashes"], groups["values"],
        groups["sets"], arrays.get("counted"),
    )  # fmt: skip


def _sampled(count: int, most: int) -> NDArray[np.int64]:
    """Which of `count` rows or columns are kept: the same in every run."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(count).choice(count, most, replace=False))


def _likeliest(logits: Array) -> NDArray[np.int32]:
    """The ids of the largest of each row, the largest first, of equal ones the smaller id."""
    count = min(LIKELIEST, logits.shape[1])
    ids = np.sort(np.argpartition(-logits, count - 1, axis=-1)[:, :count])
    order = np.argsort(-np.take_along_axis(logits, ids, -1), axis=-1, kind="stable")
    return np.take_along_axis(ids, order, -1).astype(np.int32)


def _set_hashes(chosen: Array) -> NDArray[np.uint64]:
    """A hash of each row's set."""
    rows = np.sort(chosen).astype("<i8")
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
