"""What saved runs keep: numbers the same bit for bit, and of outputs a sample with a hash."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from glm_trt.validate.judging.compare import Choices, Difference
from glm_trt.validate.judging.measure import BlockResult, EndToEnd, Pair
from glm_trt.validate.judging.problem_kinds import Finding, ProblemKind
from glm_trt.validate.running.walk import Observation
from glm_trt.validate.saving.kept_outputs import MOST_COLUMNS, MOST_ROWS, Kept, keep, with_arrays
from glm_trt.validate.saving.packing import pack, unpack


def again(kind: object, value: object) -> object:
    return unpack(kind, json.loads(json.dumps(pack(value))))


def test_what_was_measured_is_read_as_it_was() -> None:
    generator = np.random.default_rng(0)
    expected = generator.standard_normal((1, 5, 3))
    found = expected.astype(np.float32)
    found[0, 3, 1] = np.nan
    pair = Pair.of("float32")
    pair.add({"exact": expected, "rounded": expected.astype(np.float32), "found": found}, "text")
    result = BlockResult("layer.1", "sparse_indexed", {("hidden_out", "prefill"): pair})
    result.choices["expert_indices"] = Choices(3, 1, largest_lost=1e-300)  # margins are infinite
    result.findings.append(Finding("hidden_out", "x", ProblemKind.OVERWRITTEN))
    same = again(dict[str, BlockResult], {"layer.1": result})
    read = same["layer.1"]
    difference = read.isolated["hidden_out", "prefill"].found
    assert difference.ulps.dtype == np.int64
    assert difference.ulps.tolist() == pair.found.ulps.tolist()
    assert math.isnan(difference.worst["found"]) and difference.worst["difference"] == math.inf
    assert read.findings[0].kind is ProblemKind.OVERWRITTEN
    assert repr(read) == repr(result)  # of every number all digits
    assert again(NDArray[Any], np.ones((2, 1))).tolist() == [[1.0], [1.0]]
    end = EndToEnd(2, 1, 0.4, [math.nan, 0.1 + 0.2], [5e-324], {"prompt": {"wrong": []}}, None)
    assert repr(again(EndToEnd, end)) == repr(end)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Difference, {"dtype": "float32"}), (int, "3"), (int, 3.0), (str, 3), (Finding, ["a", "b"]),
     (Finding, ["a", "b", "no such"]), (dict[str, int], {"a": None})],
)  # fmt: skip
def test_what_is_something_else_is_refused(kind: object, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        unpack(kind, value)


def seen(logits: np.ndarray, rows: np.ndarray | None = None) -> Observation:
    tensors = {chain: {"logits": logits} for chain in ("exact", "rounded", "found")}
    return Observation("head", "text", "isolated", 0, 3, tensors, rows=rows)


def test_of_many_columns_the_same_ones_are_kept() -> None:
    logits = np.random.default_rng(0).standard_normal((1, 3, 1000)).astype(np.float32)
    logits[0, 1, [7, 900]] = 9.0  # equal: the smaller id first
    kept = keep(seen(logits))
    values = kept.values["logits"]
    assert values.shape == (3, MOST_COLUMNS)
    columns = [int(np.flatnonzero(logits[0, 0] == x)[0]) for x in values[0]]
    assert np.array_equal(values, logits[0][:, columns])
    likeliest = kept.sets["logits"]
    assert likeliest[1, :2].tolist() == [7, 900]
    assert likeliest.tolist() == np.argsort(-logits[0], -1, kind="stable")[:, :5].tolist()
    # What no sample sees, the hash does.
    other = logits.copy()
    other[0, 0, next(i for i in range(1000) if i not in columns)] += 1
    again = keep(seen(other))
    assert np.array_equal(again.values["logits"], values)
    assert again.hashes["logits"] != kept.hashes["logits"]


def test_narrow_outputs_are_kept_whole_and_many_rows_sampled() -> None:
    found = {"hidden_out": np.arange(12.0).reshape(1, 3, 4),
             "recurrent_state_out": np.zeros((1, 2, MOST_ROWS, 3)),
             "topk_indices": np.array([[[3, 1], [0, 2], [1, 3]]], np.int32)}  # fmt: skip
    rows = np.array([[True, True, False]])
    kept = keep(Observation("layer.0", "text", "ragged", 0, 3,
                            dict.fromkeys(("exact", "found"), found), rows=rows))  # fmt: skip
    assert np.array_equal(kept.values["hidden_out"], found["hidden_out"][0])
    assert kept.values["recurrent_state_out"].shape == (MOST_ROWS, 3)
    sets = kept.sets["topk_indices"]
    assert sets[0] == sets[2] != sets[1]
    # Padding does not count in outputs and caches; a state without a capacity is whole.
    equal = np.array([False, True, True])
    assert kept.rows_of("hidden_out", equal).tolist() == [False, True, False]
    assert kept.rows_of("kv_cache_out", equal).tolist() == [True, True, False]
    assert kept.rows_of("recurrent_state_out", equal) is None
    entry = {"block": "layer.0", "place": kept.place, "phase": kept.phase, "hashes": kept.hashes}
    same: Kept = with_arrays(entry, dict(kept.arrays()))
    assert same.values.keys() == kept.values.keys() and same.sets.keys() == kept.sets.keys()
    assert np.array_equal(same.counted, [True, True, False])
