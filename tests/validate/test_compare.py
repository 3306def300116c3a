"""The comparison against differences computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glm_trt.validate.judging.compare import ULP_EDGES, Choices, Difference
from glm_trt.validate.judging.limits import explain, pair_entry
from glm_trt.validate.judging.measure import Pair


def test_relative_difference_is_pooled() -> None:
    difference = Difference()
    difference.add(np.array([[3.0, 0.0]]), np.array([[3.0, 4.0]]), "first")
    assert difference.relative == 4 / 5
    difference.add(np.array([[12.0, 1.0]]), np.array([[12.0, 0.0]]), "second")
    assert difference.relative == pytest.approx((16 + 1) ** 0.5 / (25 + 144) ** 0.5)
    assert difference.worst == {
        "difference": 4.0, "place": "first", "coordinates": [0, 1], "expected": 4.0, "found": 0.0
    }  # fmt: skip


def test_rows_left_out_count_nothing() -> None:
    difference = Difference()
    found, expected = np.array([[1.0, 1.0], [np.nan, 9.0]]), np.ones((2, 2))
    difference.add(found, expected, "x", np.array([True, False]))
    assert difference.relative == 0.0
    assert difference.elements == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_far(bad: float) -> None:
    difference = Difference()
    difference.add(np.array([[1.0, bad]]), np.array([[1.0, 2.0]]), "x")
    assert difference.relative == np.inf
    assert difference.worst["coordinates"] == [0, 1]


def test_units_in_the_last_place_are_those_of_what_is_expected() -> None:
    difference = Difference("float32")
    expected = np.array([[1.0, 2.0, 4.0, 4.0]])
    off = np.array([[2.0**-23, 0, 2.0**-20, 1.0]])
    difference.add(expected + off, expected, "x")
    # None, one, two, and 2^21 units.
    assert [ULP_EDGES[i] for i in np.flatnonzero(difference.ulps)] == [0.0, 1.0, 4.0, 2.0**22]


def test_one_row_and_all_of_them_have_limits_of_their_own() -> None:
    exact = np.ones((1000, 4))

    def judged(found: np.ndarray) -> dict[str, Any]:
        pair = Pair.of("float32")
        pair.add({"exact": exact, "rounded": exact * (1 + 1e-7), "found": found}, "x")
        return pair_entry(pair, "float32")

    assert judged(exact * (1 + 1.9e-7))["ok"]
    wide = judged(exact * (1 + 3.5e-7))
    assert not wide["ok"] and wide["row_error"] < wide["row_limit"]
    found = exact.copy()
    found[7] *= 1 + 2e-6
    one = judged(found)
    assert not one["ok"] and one["error"] < one["limit"] and "in one row" in explain(one)


def test_zero_expected() -> None:
    difference = Difference()
    difference.add(np.zeros((1, 2)), np.zeros((1, 2)), "x")
    assert difference.relative == 0.0
    difference.add(np.ones((1, 2)), np.zeros((1, 2)), "x")
    assert difference.relative == np.inf


def test_other_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(1, 3\), found \(1, 2\)"):
        Difference().add(np.zeros((1, 2)), np.zeros((1, 3)), "x")


EXACT = np.array([[0.1, 0.5, 0.4, 0.4001, -np.inf]])


@pytest.mark.parametrize(
    ("found", "expected", "noise", "outcome"),
    [
        ([1, 3], [3, 1], 0.0, "equal"),
        ([1, 2], [1, 3], 1e-3, "near"),
        ([1, 2], [1, 3], 1e-6, "scores 0.0001 apart"),
        ([1, 2], [1, 3], 4e-5, "scores 0.0001 apart"),
        ([1, 0], [1, 3], 1e-3, "scores 0.3 apart"),
        ([1, 4], [1, 3], 9.0, "not among what can be chosen"),
        ([1, 5], [1, 3], 9.0, "not among what can be chosen"),
        ([1, 1], [1, 3], 9.0, "expected 2 different choices, found 1"),
        ([1, -1], [1, 3], 9.0, "expected 2 different choices, found 1"),
        ([1, -1], [1, -1], 0.0, "equal"),
        ([1, -2], [1, -1], 9.0, "expected indices or -1, found -2"),
        ([1, -2], [1, 3], 9.0, "expected indices or -1, found -2"),
    ],
)
def test_choices(found: list[int], expected: list[int], noise: float, outcome: str) -> None:
    choices = Choices()
    scores = EXACT, EXACT + 1e-5
    equal = choices.add(np.array([found]), np.array([expected]), scores, np.full(1, noise), "x")
    assert equal.tolist() == [outcome == "equal"]
    assert choices.near_ties == (outcome == "near")
    assert choices.wrong == (outcome not in ("equal", "near"))
    if choices.wrong:
        assert outcome in choices.first_wrong or outcome in choices.first_impossible
        assert choices.impossible == (not outcome.startswith("scores"))


def test_the_largest_loss_is_kept() -> None:
    choices = Choices()
    for found in ([1, 2], [1, 0], [1, 2]):  # 0.0001, 0.3, and 0.0001 again
        choices.add(
            np.array([found]), np.array([[1, 3]]), (EXACT, EXACT + 1e-5), np.full(1, 1e-3), "x"
        )
    assert choices.largest_lost == pytest.approx(EXACT[0, 3] - EXACT[0, 0])


def test_an_exact_tie_goes_to_the_smaller_index() -> None:
    scores = np.array([[0.0, 0.0, 1.0]])
    choices = Choices()
    choices.add(np.array([[2, 1]]), np.array([[2, 0]]), (scores, scores), np.full(1, 0.1), "x")
    assert choices.wrong == 1
    assert "exact tie" in choices.first_wrong
    # Equal by chance in one precision only: a near tie.
    other = scores + np.array([[0, 1e-9, 0]])
    choices.add(np.array([[2, 1]]), np.array([[2, 0]]), (scores, other), np.full(1, 0.1), "x")
    assert choices.near_ties == 1
