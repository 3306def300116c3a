"""A gain or a bias far below what rounding scatters is found; what rounding gives is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from faults import Edit, Faulty, constant, insert, maker_of, node_of
from onnx import helper

from glm_trt.model.config import ModelConfig
from glm_trt.validate.judging.choices import compare_choices, most_near_ties
from glm_trt.validate.judging.compare import Choices
from glm_trt.validate.judging.systematic import ITSELF, UPDATE, Systematic, judged, regressors_of
from glm_trt.validate.validation import ValidationOptions, validate_bundle

Made = Callable[[str], tuple[Path, Path]]
ROWS, WIDTH = 400, 48
TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"


def rounded(x: Any) -> Any:
    """To the digits of bfloat16."""
    return np.ldexp(np.rint(np.ldexp(x, 8 - np.frexp(x)[1])), np.frexp(x)[1] - 8)


def judge(edit: Callable[[Any, Any], Any], seed: int = 0) -> dict[str, float]:
    """Which shares of what they are allowed the gains and biases take of a layer that adds a sixth
    to a hidden state, `edit` having changed (hidden, added) before the sum is rounded.
    """
    random = np.random.default_rng(seed)
    hidden = rounded(random.normal(size=(ROWS, WIDTH)) * 3)
    added = random.normal(size=(ROWS, WIDTH)) / 2
    exact = hidden + added
    noise = random.normal(size=(2, ROWS, WIDTH)) * 1e-3
    tensors = {"exact": exact, "rounded": rounded(exact + noise[0]),
               "found": rounded(edit(hidden, added) + noise[1])}  # fmt: skip
    pooled = Systematic()
    pooled.add(tensors, {UPDATE: added}, None, channels=True)
    return {of.name.rstrip("0123456789 "): of.share for of in judged(pooled, "bfloat16", 1.1)}


def test_rounding_is_neither_gain_nor_bias() -> None:
    shares = [share for seed in range(50) for share in judge(np.add, seed).values()]
    assert 0.2 < max(shares) < 1


def test_a_gain_is_found() -> None:
    assert judge(lambda hidden, added: hidden + 1.006 * added)[UPDATE] > 1


def test_a_bias_is_found() -> None:
    assert judge(lambda hidden, added: hidden + added + 1e-3)["bias"] > 1


def test_a_bias_of_one_channel_is_found() -> None:
    shares = judge(lambda hidden, added: hidden + added + 0.01 * (np.arange(WIDTH) == 7))
    assert shares["bias of channel"] > 1 > shares[UPDATE]


def test_the_backends_scatter_allows_it_nothing() -> None:
    random = np.random.default_rng(1)
    scattered = judge(lambda hidden, added: hidden + 1.006 * added
                      + 0.02 * random.normal(size=added.shape))  # fmt: skip
    assert scattered[UPDATE] > 1


def test_a_better_backend_than_the_yardstick_is_right() -> None:
    """The yardstick's own gain is no reproach to those that have none, or half of it."""
    exact = np.random.default_rng(2).normal(size=(ROWS, WIDTH))
    for gain in (0.0, 0.01):
        pooled = Systematic()
        tensors = {"exact": exact, "rounded": 1.02 * exact, "found": (1 + gain) * exact}
        pooled.add(tensors, {ITSELF: exact}, None, channels=False)
        assert all(of.share <= 1 for of in judged(pooled, "float32", 2.0))


def test_few_rows_and_left_out_rows_say_nothing() -> None:
    exact = np.ones((ROWS, WIDTH))
    tensors = {"exact": exact, "rounded": exact, "found": 2 * exact}
    pooled = Systematic()
    pooled.add(tensors, {ITSELF: exact}, np.arange(ROWS) < 15, channels=True)
    assert pooled.rows == 15 and not judged(pooled, "float32", 2.0)
    tensors["found"][:100] = np.nan
    pooled = Systematic()
    pooled.add(tensors, {ITSELF: exact}, np.arange(ROWS) < 200, channels=True)
    assert pooled.rows == 100 and judged(pooled, "float32", 2.0)[0].share > 1


def test_what_a_layer_adds_is_the_sum_of_its_parts() -> None:
    parts = {"added_by_attention": np.ones((6, 4)), "added_by_mlp": np.full((6, 4), 2.0)}
    found = regressors_of("hidden_out", np.zeros((2, 3, 4)), parts | {"expert_scores": np.ones(1)})
    assert [*found] == [UPDATE, "attention", "mlp"] and (found[UPDATE] == 3).all()
    assert [*regressors_of("kv_cache_out", np.zeros((2, 3, 4)), parts)] == [ITSELF]


def test_near_ties_beyond_those_of_the_dtype_are_too_many() -> None:
    """By chance never, for backends that choose as often otherwise as the eager model does."""
    random = np.random.default_rng(3)
    for mean in (0.5, 5.0, 60.0, 400.0):
        counts = random.poisson(mean, (20_000, 2))
        assert all(found <= most_near_ties(int(dtype), 1.1) for dtype, found in counts)
    assert most_near_ties(0, 1.1) < 20 and most_near_ties(20, 1.1) < 75
    assert most_near_ties(400, 1.1) <= 1.5 * 400


def test_near_ties_of_both_chains_are_counted() -> None:
    config = ModelConfig.from_dict(json.loads((TINY / "config.json").read_text()), "tiny")
    pooled, tokens = Choices(), 40
    exact, other = np.tile([0, 1], (tokens, 1)), np.tile([0, 2], (tokens, 1))
    scores = np.tile([4.0, 2.001, 2.0, 1.0], (tokens, 1))
    outputs = {"exact": exact, "found": other, "rounded": exact.copy()}
    outputs["rounded"][:3] = other[:3]
    of_chains = ({"position_scores": scores}, {"position_scores": scores + 0.01})
    named = {chain: {"topk_indices": of} for chain, of in outputs.items()}
    counted = np.arange(tokens) != 0
    compare_choices(config, "topk_indices", named, of_chains, pooled, "", counted)
    assert (pooled.near_ties, pooled.dtype_near_ties, pooled.wrong) == (39, 2, 0)
    assert pooled.near_ties > most_near_ties(pooled.dtype_near_ties, 2.0)


def times(block: str, op_type: str, gain: float, at: int = 0) -> Edit:
    """What an operator of that type makes is multiplied before anything reads it."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, op_type, at)
        name, nodes = node.output[0], list(model.graph.node)
        node.output[0] = "as_it_should_be"
        factor = constant(model, "factor", np.array(gain, dtype_of(model)))
        product = helper.make_node("Mul", ["as_it_should_be", factor], [name])
        insert(model, nodes[nodes.index(node) + 1], product)

    return lambda bundle: bundle.graphs(block, edit)


def plus(block: str, bias: float, channel: int | None = None) -> Edit:
    """The hidden state that a block gives has a number added, in one channel or in all."""

    def edit(model: onnx.ModelProto) -> None:
        node = maker_of(model, "hidden_out")
        node.output[0] = "as_it_should_be"
        value = next(x for x in model.graph.output if x.name == "hidden_out")
        width = value.type.tensor_type.shape.dim[-1].dim_value
        added = np.full(width, bias) * (1 if channel is None else np.arange(width) == channel)
        name = constant(model, "added_to_all", added.astype(dtype_of(model)))
        model.graph.node.append(helper.make_node("Add", ["as_it_should_be", name], ["hidden_out"]))

    return lambda bundle: bundle.graphs(block, edit)


def dtype_of(model: onnx.ModelProto) -> Any:
    value = next(x for x in model.graph.output if x.name == "hidden_out")
    return helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


FAULTS = {
    "gain of experts": ("plain", "layer.1", "bfloat16", times("layer.1", "MoeExperts", 1.0078125)),
    "gain of experts, float32": (
        "plain", "layer.1", "float32", times("layer.1", "MoeExperts", 1 + 3e-6)),
    "gain of attention": (
        "plain", "layer.1", "bfloat16", times("layer.1", "SparseMla", 1.0078125)),
    "bias": ("plain", "layer.1", "bfloat16", plus("layer.1", 2**-9)),
    "bias of a channel": ("plain", "layer.1", "float32", plus("layer.1", 3e-6, 5)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_below_rounding_is_found(
    made: Made, shared_walks: None, tmp_path: Path, fault: str
) -> None:
    of, block, dtype, edit = FAULTS[fault]
    checkpoint, bundle = made(of)
    copy = Faulty(bundle, tmp_path / "faulty")
    edit(copy)
    copy.seal()
    backend = "onnxruntime" if dtype == "float32" else "graph"
    report = validate_bundle(tmp_path / "faulty", ValidationOptions(backend, dtype, checkpoint))
    bad = [of for of in report["blocks"] if not of["ok"]]
    assert [of["name"] for of in bad][:1] == [block]
    problems = bad[0]["problems"]
    assert any(x["problem"] == "systematic" and x["output"] == "hidden_out" for x in problems)
