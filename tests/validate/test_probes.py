"""What probes feed: far positions, large values, states to be kept; and what counts of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.validate.judging.measure import Measures
from glm_trt.validate.judging.verdict import judge_block
from glm_trt.validate.running import probes
from glm_trt.validate.running.cases import Case
from glm_trt.validate.running.many_steps import has_many_steps, run_many_steps
from glm_trt.validate.running.probes import (
    GARBAGE,
    Probe,
    before_round_up,
    make_probes,
    usual_tokens,
)
from glm_trt.validate.running.walk import CHAINS, Flow, Observation, Runners, cast, in_range, start
from glm_trt.validate.validation import all_blocks, open_bundle

Made = Callable[[str], tuple[Path, Path]]
POSITIONS = 8192
LARGEST = 65504  # of float16


@pytest.mark.parametrize("capacity", [1, 2, 3, 160, 2305, 4096, 8191, 8192, 50_000, 202_752])
def test_a_past_that_fewer_digits_round_up(capacity: int) -> None:
    """And the position that it is rounded up to is there, so that what it holds is seen."""
    past = before_round_up(capacity)
    assert past == max(0, past) and (past + 1 < capacity or capacity <= 2)
    assert past >= 0.8 * (capacity - 2) - 1
    for narrow, from_capacity in ((np.float16, 2305), (ml_dtypes.bfloat16, 320)):
        if from_capacity <= capacity < LARGEST:
            assert past < float(np.array(past).astype(narrow)) < capacity


def flow_of(bundle: Bundle) -> Flow:
    """A case of 12 tokens behind some block."""
    flow = start(Case("text", np.zeros((1, 12), np.int64), 12))
    random = np.random.default_rng(3)
    for name in ("hidden", "embedded"):
        values = random.standard_normal((1, 12, bundle.config.hidden_size))
        flow.values["exact"][0][name] = values
    return flow


def probes_of(bundle: Bundle, name: str, dtype: str, scores: Any = None) -> dict[str, Probe]:
    block = next(block for block in all_blocks(bundle) if block.name == name)
    random = np.random.default_rng(4)
    states = {x.name: random.standard_normal(x.shape(1, 12)) for x in bundle.states(block)}
    made = make_probes(bundle, block, dtype, [flow_of(bundle)], states, scores)
    return {probe.mode: probe for probe in made}


def roomy(directory: Path) -> Bundle:
    bundle = open_bundle(directory, None)
    bundle.max_seq_len = POSITIONS
    return bundle


def test_embeddings_are_asked_for_far_positions(made: Made) -> None:
    bundle = roomy(made("plain")[1])
    block = bundle.blocks[0]
    made_probes = make_probes(bundle, block, "float32", [], {}, lambda _: np.zeros(0))
    asked = {int(x) for probe in made_probes for x in probe.inputs["past_lengths"]}
    assert {POSITIONS - 1, 257, 511, 2049, 4095} <= asked
    assert max(asked) < POSITIONS


def test_far_caches_end_in_garbage_and_rounding_chooses_nothing(made: Made) -> None:
    bundle = roomy(made("plain")[1])
    direction = np.random.default_rng(5).standard_normal(bundle.config.index_head_dim)

    def scores(inputs: Any) -> Any:
        return inputs["index_keys"][:, 0][:, None] @ direction

    inputs = probes_of(bundle, "layer.1", "bfloat16", scores)["far"].inputs
    pasts = inputs["past_lengths"]
    assert pasts.tolist() == [before_round_up(POSITIONS), POSITIONS - 1]
    for row, past in enumerate(pasts):
        for name in ("kv_cache", "index_keys"):
            assert (inputs[name][row, 0, past:] == GARBAGE).all()
            assert np.abs(inputs[name][row, 0, :past]).max() < GARBAGE
        found = np.sort(scores(inputs)[row, 0, :past])[::-1]
        count = bundle.config.index_topk
        assert found[count - 1] > 2 * found[count]


def test_far_caches_are_bounded(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = roomy(made("hybrid")[1])
    assert probes_of(bundle, "layer.3", "float32")["far"].inputs["kv_cache"].shape[2] == POSITIONS
    monkeypatch.setattr(probes, "MOST_CACHE_BYTES", 1 << 16)
    far = probes_of(bundle, "layer.3", "float32")["far"]
    assert far.inputs["kv_cache"].astype(np.float32).nbytes <= 1 << 16
    assert far.inputs["past_lengths"].max() == far.inputs["kv_cache"].shape[2] - 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("name", "block"), [("hybrid", "layer.0"), ("hybrid", "layer.3")])
def test_large_values(made: Made, name: str, block: str, dtype: str) -> None:
    """Beyond float16, but in it."""
    found = probes_of(roomy(made(name)[1]), block, dtype)
    hidden = np.abs(found["large"].inputs["hidden"]).max(-1)
    states = [
        np.abs(found["large states"].inputs[state]).max()
        for state in ("kv_cache", "conv_state", "recurrent_state")
        if state in found["large states"].inputs
    ]
    assert states
    if dtype == "float16":
        assert hidden.max() < LARGEST and max(states) < LARGEST
    else:
        assert hidden.min() > LARGEST and min(states) > LARGEST


def test_a_state_that_is_kept_is_judged_in_its_own_dtype(made: Made) -> None:
    """In bfloat16 too, whose rounding hides it behind any token."""
    bundle = roomy(made("hybrid")[1])
    inputs = cast(probes_of(bundle, "layer.0", "bfloat16")["carried"].inputs, "bfloat16")
    assert not inputs["lengths"].any()
    state = inputs["recurrent_state"]
    assert state.dtype == np.float32
    narrow = state.astype(ml_dtypes.bfloat16).astype(np.float32)
    hidden = inputs["hidden"].astype(np.float32)
    kinds = {block.name: block.kind for block in all_blocks(bundle)}
    for found, problems in ((state, 0), (narrow, 1)):
        tensors = {
            chain: {
                "hidden_out": hidden,
                "recurrent_state_out": found if chain == "found" else state,
            }
            for chain in CHAINS
        }
        measures = Measures(bundle.config, "bfloat16", [], kinds)
        rows = np.zeros(hidden.shape[:2], bool)
        measures.add(Observation("layer.0", "", "carried", 0, 0, tensors, rows=rows))
        assert len(judge_block(measures, "layer.0")) == problems


def test_what_the_yardstick_cannot_do_does_not_count() -> None:
    hidden = np.zeros((1, 3, 4))
    beyond = hidden.copy()
    beyond[0, 1, 2] = np.inf
    tensors = {"exact": {"hidden_out": hidden}, "rounded": {"hidden_out": beyond}}
    seen = Observation("layer.0", "", "large", 0, 0, tensors)
    found = in_range(seen)
    assert found is not None and found.tolist() == [[True, False, True]]
    tensors["rounded"] = tensors["exact"]
    assert in_range(seen) is None


@dataclass
class Sum:
    """Adds its input to its state, which is kept in `dtype`."""

    dtype: Any = np.float64
    scores: dict[str, Any] = field(default_factory=dict)

    def __call__(self, inputs: Any) -> Any:
        state = inputs["recurrent_state"] + inputs["hidden"].astype(np.float64).mean()
        state = state.astype(self.dtype).astype(np.float32)
        return {
            "hidden_out": inputs["hidden"], "conv_state_out": inputs["conv_state"],
            "recurrent_state_out": state,
        }  # fmt: skip


def test_what_a_state_loses_gathers_over_many_steps(made: Made) -> None:
    bundle = open_bundle(made("hybrid")[1], None)
    block = next(block for block in bundle.blocks if block.name == "layer.0")
    runners = Runners(Sum(), Sum(np.float32), Sum(ml_dtypes.bfloat16), "float32")

    def lost(steps: int) -> float:
        tokens = np.full((2, steps, bundle.config.hidden_size), 0.1, np.float32)
        tensors, _, findings, inputs = run_many_steps(bundle, block, runners, tokens)
        assert not findings and inputs["hidden"].shape[1] == 1
        assert tensors["found"]["hidden_out"].shape == tokens.shape
        exact, found = (tensors[x]["recurrent_state_out"] for x in ("exact", "found"))
        return float(np.abs(exact - found).max() / np.abs(exact).max())

    assert lost(64) > 4 * lost(1)


def test_many_steps_are_run_once_a_kind(made: Made) -> None:
    bundle = open_bundle(made("hybrid")[1], None)
    run = [block.name for block in all_blocks(bundle) if has_many_steps(bundle, block)]
    assert run == ["layer.0", "layer.1"]
    assert not any(has_many_steps(x, y) for x, y in blocks_of(made("plain")[1]))


def blocks_of(directory: Path) -> list[tuple[Bundle, Block]]:
    bundle = open_bundle(directory, None)
    return [(bundle, block) for block in all_blocks(bundle)]


def test_few_tokens_are_taken_over_and_over(made: Made) -> None:
    flow = flow_of(open_bundle(made("plain")[1], None))
    found = usual_tokens(flow, "hidden", 2, 9)
    text = flow.values["exact"][0]["hidden"][0]
    assert np.array_equal(found[0], text[:9])
    assert np.array_equal(found[1], text[[9, 10, 11, 0, 1, 2, 3, 4, 5]])
