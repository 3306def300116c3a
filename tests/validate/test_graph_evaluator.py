"""The evaluator against plain onnxruntime, which nobody here wrote, node by node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint.bindings import bound_tensor
from glm_trt.model.checkpoint.weights import as_torch
from glm_trt.model.errors import BlockError, GlmTrtError
from glm_trt.validate.running.graph_evaluator import GraphEvaluator

Made = Callable[[str], tuple[Path, Path]]


def block_inputs(bundle: Bundle, block: Block, past: int, length: int) -> dict[str, Any]:
    """Random ones, in the middle of a sequence."""
    config, generator = bundle.config, np.random.default_rng(0)
    angles = generator.uniform(0, 6, (1, length, config.qk_rope_head_dim // 2))
    inputs = {
        "hidden": generator.standard_normal((1, length, config.hidden_size)),
        "embedded": generator.standard_normal((1, length, config.hidden_size)),
        "cos": np.cos(angles), "sin": np.sin(angles),
        "past_lengths": np.full(1, past), "lengths": np.full(1, length),
        "input_ids": generator.integers(0, config.vocab_size, (1, length)),
    } | {x.name: generator.standard_normal(x.shape(1, past + length))
         for x in bundle.states(block)}  # fmt: skip
    path = bundle.graph_path(block.kind, "float32")
    wanted = {x.name for x in onnx.load(path).graph.input}
    return {
        name: x.astype(np.float32) if x.dtype == np.float64 else x
        for name, x in inputs.items() if name in wanted
    }  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "hybrid", "fp8", "nvfp4"])
def test_every_value_of_every_kind(made: Made, name: str) -> None:
    bundle = Bundle.open(made(name)[1])
    for kind in bundle.kinds:
        block = next(b for b in (*bundle.blocks, *bundle.prediction_blocks) if b.kind == kind)
        model = onnx.load(bundle.graph_path(kind, "float32"))
        weights = {
            x.name: bound_tensor(x, bundle.weights, None if x.dtype == "int8" else "float32")
            for x in block.bindings
        }
        inputs = block_inputs(bundle, block, 20, 3)
        evaluator = GraphEvaluator(model)
        given = {n: as_torch(np.ascontiguousarray(x)) for n, x in (inputs | weights).items()}
        made = [name for node in model.graph.node for name in node.output if name]
        found = evaluator.run(given, made)
        names = [x for x in made if x not in evaluator.outputs]
        model.graph.output.extend(onnx.ValueInfoProto(name=x) for x in names)
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        wanted = [value.name for value in session.get_outputs()]
        expected = dict(zip(wanted, session.run(wanted, inputs | weights), strict=True))
        for value, array in expected.items():
            ours = found[value].numpy()
            assert ours.shape == array.shape, (kind, value)
            np.testing.assert_allclose(ours, array, rtol=2e-4, atol=2e-4, err_msg=f"{kind} {value}")


def test_exact_evaluation_keeps_float64() -> None:
    """A graph's own casts to float32 lose nothing there, and do in its own dtype."""
    cast = helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, [1])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([cast], "g", [x], [y]))
    third = torch.tensor([1 / 3], dtype=torch.float64)
    assert GraphEvaluator(model, exact=True).run({"x": third})["y"] == third
    assert GraphEvaluator(model).run({"x": third})["y"] != third


def one_node(op_type: str, domain: str = "") -> onnx.ModelProto:
    node = helper.make_node(op_type, ["x"], ["y"], name="strange", domain=domain)
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [3]) for n in "xy"]
    return helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_operator_that_only_a_changed_graph_has(dtype: torch.dtype) -> None:
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=dtype)
    found = GraphEvaluator(one_node("Erf")).run({"x": x})["y"]
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.erf(x))


def test_an_operator_of_nobody_is_refused() -> None:
    with pytest.raises(GlmTrtError, match=r"node strange: .* found elsewhere\.Erf"):
        GraphEvaluator(one_node("Erf", "elsewhere")).run({"x": torch.zeros(3)})
    with pytest.raises(BlockError, match="NoSuchOperator node strange: "):
        GraphEvaluator(one_node("NoSuchOperator")).run({"x": torch.zeros(3)})


@pytest.mark.parametrize("exact", [False, True])
def test_such_an_operator_that_makes_bfloat16(exact: bool) -> None:
    """Of integers: no input says which dtype the result has."""
    value = helper.make_tensor("value", onnx.TensorProto.BFLOAT16, [1], [1.5])
    node = helper.make_node("ConstantOfShape", ["x"], ["y"], value=value)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.INT64, [1])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.BFLOAT16, [3])
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]))
    found = GraphEvaluator(model, exact=exact).run({"x": torch.tensor([3])})["y"]
    assert found.dtype == torch.bfloat16 and found.tolist() == [1.5] * 3
