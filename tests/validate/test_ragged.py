"""Rows of different lengths side by side: which columns are tokens; nothing else counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_faults import problems

from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.export.bundle.format import Block
from glm_trt.validate.running.cases import Case, CaseOptions, make_cases
from glm_trt.validate.running.reference import Reference
from glm_trt.validate.running.walk import start, start_prediction
from glm_trt.validate.validation import ValidationOptions, open_bundle, validate_bundle

Made = Callable[[str], tuple[Path, Path]]
# Two rows: 3 + 1 + 1 tokens and 1 + 2 + 1, in passes of 3, 2 and 1 columns.
RAGGED = np.array([[3, 1], [1, 2], [1, 1]])
COUNTED = np.array([[1, 1, 1, 1, 0, 1], [1, 0, 0, 1, 1, 1]], bool)


def test_passes_of_a_ragged_case() -> None:
    case = Case("ragged", np.zeros((2, 6), np.int64), 5, ragged=RAGGED)
    assert [(piece.begin, piece.end) for piece in case.pieces] == [(0, 3), (3, 5), (5, 6)]
    assert [piece.past_lengths.tolist() for piece in case.pieces] == [[0, 0], [3, 1], [4, 3]]
    assert np.array_equal(case.counted, COUNTED)
    assert Case("even", np.zeros((2, 6), np.int64), 5).counted is None


def test_each_token_is_predicted_from_its_own_follower() -> None:
    """Padding between a token and the one that follows it is passed over."""
    case = Case("ragged", np.zeros((2, 6), np.int64), 5, ragged=RAGGED)
    flow = start(case)
    columns = np.broadcast_to(np.arange(6.0), (2, 6))[..., None]
    for pieces in flow.values.values():
        for values, piece in zip(pieces, case.pieces, strict=True):
            values["embedded"] = columns[:, piece.begin : piece.end]
    start_prediction(flow)
    found = np.concatenate([values["embedded"] for values in flow.values["found"]], axis=1)[..., 0]
    assert found[COUNTED].tolist() == [1, 2, 3, 5, 5, 3, 4, 5, 5]


@pytest.mark.parametrize("positions", [1, 2, 3, 5, 8, 13, 33, 34])
def test_a_bundle_of_few_positions_has_ragged_rows_that_fit(made: Made, positions: int) -> None:
    _, directory = made("plain")
    bundle = open_bundle(directory, None)
    cases = make_cases(bundle, Reference(bundle), CaseOptions(longest=positions))
    (case,) = [case for case in cases if case.ragged is not None]
    assert case.ids.shape[1] <= positions
    assert case.ids.shape[1] == sum(piece.end - piece.begin for piece in case.pieces)
    if positions > 2:
        assert len({*case.ragged.sum(axis=0).tolist()}) > 1
    if positions > 14:  # as many tokens behind a past as verifying drafts takes
        assert case.ragged[2:].max(axis=1).tolist() == [1, 2, 3, 1]


def test_padding_does_not_count(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend may leave anything behind a row's own tokens, in outputs and in caches."""
    checkpoint, bundle = made("plain")
    right = OnnxruntimeBackend.run_block
    spoiled = []

    def run(self: Any, block: Block, inputs: Any) -> Any:
        found = right(self, block, inputs)
        hidden = inputs.get("hidden")
        if hidden is None or block.layer is None:
            return found
        padding = (np.asarray(hidden) == 64).all(-1)
        for row, column in np.argwhere(padding):
            spoiled.append(block.name)
            found["hidden_out"][row, column] = np.nan
            at = inputs["past_lengths"][row] + column
            for name in ("kv_cache_out", "index_keys_out"):
                found[name][row, :, at] = np.nan
        return found

    monkeypatch.setattr(OnnxruntimeBackend, "run_block", run)
    options = ValidationOptions(checkpoint=checkpoint, cases=CaseOptions(longest=40))
    report = validate_bundle(bundle, options)
    assert report["ok"], problems(report)
    assert {*spoiled} == {"layer.0", "layer.1", "layer.2"}
