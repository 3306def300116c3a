"""The fault that is put into a layer is the one that is said, and the smallest is found."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import make_bundle
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

from validation_sensitivity import (
    BIASES,
    CLOSE,
    GAIN,
    LEAST,
    MOST,
    UNIT,
    inject,
    main,
    parts_of,
    smallest,
)

from glm_trt.validate.running.graph_evaluator import GraphEvaluator

ROWS, WIDTH = 5, 4


def layer(*, experts: bool = False, swapped: bool = False) -> onnx.ModelProto:
    """A layer whose attention is a product by 3 and whose MLP is one by 5, or which has experts."""

    def add(a: str, b: str, name: str) -> onnx.NodeProto:
        return helper.make_node("Add", [b, a] if swapped else [a, b], [name])

    nodes = [
        helper.make_node("Reshape", ["hidden", "rows"], ["flat"]),
        helper.make_node("Mul", ["flat", "three"], ["attended"]),
        add("flat", "attended", "residual"),
        helper.make_node("Mul", ["residual", "five"], ["mixed"]),
    ]
    if experts:
        nodes[-1].output[0] = "shared"
        nodes.append(helper.make_node("MoeExperts", ["residual"], ["routed"], domain="glm_trt"))
        nodes.append(add("routed", "shared", "mixed"))
    nodes += [
        add("residual", "mixed", "sum"),
        helper.make_node("Reshape", ["sum", "batch"], ["hidden_out"]),
    ]
    shapes = {"rows": [ROWS, WIDTH], "batch": [1, ROWS, WIDTH]}
    constants = [onnx.numpy_helper.from_array(np.array(x), name) for name, x in shapes.items()]
    constants += [onnx.numpy_helper.from_array(np.float32(x), name)
                  for name, x in {"three": 3, "five": 5}.items()]  # fmt: skip
    hidden, out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, ROWS, WIDTH])
        for name in ("hidden", "hidden_out")
    )
    return helper.make_model(helper.make_graph(nodes, "layer", [hidden], [out], constants))


@pytest.mark.parametrize("swapped", [False, True])
def test_parts(swapped: bool) -> None:
    for experts in (False, True):
        taken = {
            part: (node.output[0], node.input[at])
            for part, (node, at) in parts_of(layer(experts=experts, swapped=swapped)).items()
        }
        mixed = {"experts": ("mixed", "routed"), "shared_experts": ("mixed", "shared")}
        assert taken == {"update": ("sum", "residual"), "attention": ("residual", "attended")} | (
            mixed if experts else {"mlp": ("sum", "mixed")}
        )


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("part", "factor"), [("update", 1 + 23 * 1.25), ("attention", 6 * 4.75), ("mlp", 4 + 20 * 1.25)]
)
def test_a_gain_of_a_part(part: str, factor: float, swapped: bool) -> None:
    """Without a gain the layer gives (1 + 3) · (1 + 5) times what it is given."""
    model = layer(swapped=swapped)
    inject(model, part)
    onnx.checker.check_model(model)
    hidden = torch.randn(1, ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    biases = np.zeros(WIDTH) if part == "update" else None

    def run(gain: float, biases: Any = biases) -> Any:
        fed = {"hidden": hidden, GAIN: torch.tensor([round(gain / UNIT)])}
        if biases is not None:
            fed[BIASES] = torch.from_numpy(np.rint(biases / UNIT).astype(np.int64))
        return GraphEvaluator(model).run(fed)["hidden_out"]

    assert torch.equal(run(0.0), GraphEvaluator(layer()).run({"hidden": hidden})["hidden_out"])
    torch.testing.assert_close(run(0.25), factor * hidden)
    if biases is not None:
        biased = run(0.0, np.array([0.0, 0.5, 0.0, 0.0]))
        more = torch.tensor([0.0, 0.5, 0.0, 0.0])
        torch.testing.assert_close(biased, 24 * hidden + more)


@pytest.mark.parametrize("least", [3e-7, 1e-3, 0.4])
@pytest.mark.parametrize("guess", [1e-7, 1e-3, 0.9])
@pytest.mark.parametrize("linear", [True, False])
def test_the_smallest_that_is_noticed(least: float, guess: float, linear: bool) -> None:
    tried: list[float] = []

    def judged(size: float) -> tuple[bool, float]:
        tried.append(size)
        return size >= least, size / least if linear else math.inf if size >= least else 0.9

    assert least <= smallest(judged, guess) <= CLOSE * least
    assert len(tried) < (10 if linear else 40)


def test_what_is_never_noticed_and_what_always_is() -> None:
    assert smallest(lambda _: (False, 0.0), 1e-6) == MOST
    assert smallest(lambda _: (True, 1.01), 1e-3) == LEAST


@pytest.mark.slow
def test_of_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, bundle = make_bundle("plain", tmp_path)
    assert main([str(bundle)]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    worst = {(dtype, fault): float(size) for dtype, fault, _, _, size in rows}
    assert worst["float32", "gain of update"] <= 3e-6
    assert worst["bfloat16", "gain of update"] <= 0.003
    assert {layers for _, fault, layers, *_ in rows if "experts" in fault} == {"2"}
    assert len(rows) == 2 * 7
