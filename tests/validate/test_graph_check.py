"""Graphs beside those that this version exports: what is a note, and what is a problem."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from faults import Faulty, insert, maker_of, node_of
from onnx import helper, numpy_helper

from glm_trt.export.bundle.read import Bundle
from glm_trt.model.errors import GlmTrtError
from glm_trt.plugins.bodies import function_bodies
from glm_trt.validate.checking.fresh_graphs import FreshGraphs
from glm_trt.validate.checking.graph_check import KindCheck, check_kind, open_fresh
from glm_trt.validate.checking.graph_difference import differences, inserted_before
from glm_trt.validate.checking.graph_values import body_problem
from glm_trt.validate.reporting.report_text import graphs_line, summary
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.running.reference import Reference
from glm_trt.validate.validation import ValidationOptions, validate_bundle

Made = Callable[[str], tuple[Path, Path]]
Edit = Callable[[onnx.ModelProto], None]


def checked(made: Made, place: Path, block: str, edit: Edit, dtype: str = "float32") -> KindCheck:
    """What the check says of the kind of `block` in a bundle whose graphs were edited."""
    copy = Faulty(made("plain")[1], place / "edited")
    copy.graphs(block, edit)
    copy.seal()
    bundle = Bundle.open(place / "edited")
    return check_kind(
        bundle, Reference(bundle), copy.kind_of(block), dtype, open_fresh(bundle, dtype)
    )


def renamed(model: onnx.ModelProto) -> None:
    """Every inner value, and every node."""
    outer = {x.name for x in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    for node in model.graph.node:
        node.name = f"other_{node.name}"
        for names in (node.input, node.output):
            names[:] = [x if x in outer or not x else f"other_{x}" for x in names]


def turned_addition(model: onnx.ModelProto) -> None:
    node = node_of(model, "Add", -1)
    node.input[:] = list(node.input)[::-1]


def with_an_identity(model: onnx.ModelProto) -> None:
    node = maker_of(model, "hidden_out")
    insert(model, node, helper.make_node("Identity", [node.input[0]], ["same"], name="same"))
    node.input[0] = "same"


def unused_function(model: onnx.ModelProto) -> None:
    model.functions.append(function_bodies()["CausalMla"])


@pytest.mark.parametrize(
    ("edit", "dtype"),
    [
        (renamed, "bfloat16"),
        (turned_addition, "bfloat16"),
        (with_an_identity, "float32"),
        (unused_function, "float32"),
    ],
)
def test_what_makes_the_same_values_is_a_note(
    made: Made, tmp_path: Path, edit: Edit, dtype: str
) -> None:
    check = checked(made, tmp_path, "layer.1", edit, dtype)
    assert check.differences and check.problem is None


def another_epsilon(model: onnx.ModelProto) -> None:
    for attribute in node_of(model, "RMSNormalization", -1).attribute:
        if attribute.name == "epsilon":
            attribute.f *= 1.01


def without_an_output(model: onnx.ModelProto) -> None:
    del model.graph.output[-1]


def position_of_few_bits(model: onnx.ModelProto) -> None:
    """Exact up to 256, and the range of this bundle ends before: no fault by itself."""
    node = node_of(model, "Cast")
    name = node.output[0]
    node.output[0] = "wide"
    at = list(model.graph.node).index(node)
    model.graph.node.insert(at + 1, helper.make_node("Cast", ["wide"], ["narrow"], to=16))
    model.graph.node.insert(at + 2, helper.make_node("Cast", ["narrow"], [name], to=1))


@pytest.mark.parametrize(
    ("block", "edit", "text"),
    [
        ("layer.1", another_epsilon, "epsilon: expected 1e-05"),
        ("layer.1", without_an_output, "is lacking: .*found none"),
    ],
)
def test_other_values_are_a_problem(
    made: Made, tmp_path: Path, block: str, edit: Edit, text: str
) -> None:
    check = checked(made, tmp_path, block, edit)
    assert check.problem is not None
    assert re.search(text, check.problem), check.problem


def test_positions_reach_to_the_end_of_the_range(made: Made, tmp_path: Path) -> None:
    """The same cast is harmless in a short range and a problem in a long one."""
    check = checked(made, tmp_path, "embedding", position_of_few_bits)
    assert check.differences and check.problem is None
    bundle = Bundle.open(tmp_path / "edited")
    bundle.max_seq_len = 4096
    found = check_kind(
        bundle, Reference(bundle), "embedding", "float32", open_fresh(bundle, "float32")
    )
    assert found.problem is not None and "last position" in found.problem


def test_a_body_in_a_dtype_that_is_not_validated(made: Made, tmp_path: Path) -> None:
    copy = Faulty(made("plain")[1], tmp_path / "edited")
    path = copy.directory / "graphs/bfloat16" / f"{copy.kind_of('layer.1')}.onnx"
    model = onnx.load(path)
    body = next(f for f in model.functions if f.name == "IndexerTopK")
    next(n for n in body.node if n.op_type == "Relu").op_type = "Abs"
    onnx.save(model, path)
    copy.seal()
    bundle = Bundle.open(copy.directory)
    kind = copy.kind_of("layer.1")
    check = check_kind(bundle, Reference(bundle), kind, "float32", open_fresh(bundle, "float32"))
    assert [dtype for dtype, _ in check.differences] == ["bfloat16"]
    assert check.problem is not None and check.problem.startswith("the body of IndexerTopK")


def test_the_report_says_it(made: Made, tmp_path: Path) -> None:
    """A note in a report that passes; a problem of the first block, which no `output` waives."""
    checkpoint, whole = made("plain")
    for edit, ok in ((turned_addition, True), (another_epsilon, False)):
        copy = Faulty(whole, tmp_path / edit.__name__)
        copy.graphs("layer.1", edit)
        copy.seal()
        options = ValidationOptions("eager", "float32", checkpoint, cases=CaseOptions(longest=24))
        report = validate_bundle(copy.directory, options)
        assert report["ok"] is ok, summary(report)
        (entry,) = [x for x in report["graphs"]["kinds"] if x["differences"]]
        assert entry["kind"] == copy.kind_of("layer.1") and entry["blocks"][0] == "layer.1"
        assert (entry["problem"] is None) is ok
        assert ("the values are the same" in graphs_line(report)) is ok
        bad = [(b["name"], p["problem"]) for b in report["blocks"] for p in b["problems"]]
        assert bad == ([] if ok else [("layer.1", "graphs")])


@pytest.mark.parametrize("name", sorted(function_bodies()))
def test_a_body_makes_what_it_makes(name: str) -> None:
    """Nothing is said of an equal body; each is run on cases of its own operator."""
    body = function_bodies()[name]
    assert body_problem(body, body) is None
    broken = onnx.FunctionProto()
    broken.CopyFrom(body)
    node = next(n for n in reversed(broken.node) if n.op_type in ("Mul", "MatMul", "Less"))
    operator = {"Mul": "Add", "MatMul": "Add", "Less": "Greater"}[node.op_type]
    node.op_type = operator
    assert body_problem(broken, body) is not None


def test_differences() -> None:
    def model(*nodes: onnx.NodeProto, value: float = 1.0) -> onnx.ModelProto:
        x, y = (helper.make_tensor_value_info(n, 1, [2]) for n in "xy")
        tensor = numpy_helper.from_array(np.float32([value, 2.0]), "c")
        return helper.make_model(helper.make_graph([*nodes], "g", [x], [y], [tensor]))

    add = helper.make_node("Add", ["x", "c"], ["a"], name="add")
    relu = helper.make_node("Relu", ["a"], ["y"], name="relu")
    ours = model(add, relu)
    assert differences(model(add, relu), ours) == []
    (found,) = differences(model(add, relu, value=1.5), ours)
    assert found.text == "c: 1 of 2 values differ, first at [0]: expected 1.0, found 1.5"
    assert found.what == "initializer" and found.node is not None and found.node.name == "add"
    (found,) = differences(model(add, helper.make_node("Abs", ["a"], ["y"], name="relu")), ours)
    assert (found.what, found.text) == ("node", "Abs (relu): expected Relu")
    cast = helper.make_node("Cast", ["a"], ["b"], to=10, name="cast")
    after = helper.make_node("Relu", ["b"], ["y"], name="relu")
    theirs = model(add, cast, after)
    inserted, changed = differences(theirs, ours)
    assert inserted.text == "Cast (cast) is not exported: it makes b"
    assert changed.text == "Relu (relu): input 0: expected a, found b"
    assert [node.name for node in inserted_before("y", ["a"], theirs, ours)] == ["cast"]
    # One that takes the name of what it reads.
    before = helper.make_node("Add", ["x", "c"], ["raw"], name="add")
    cast = helper.make_node("Cast", ["raw"], ["a"], to=10, name="cast")
    theirs = model(before, cast, relu)
    assert [x.what for x in differences(theirs, ours)] == ["inserted", "node"]
    assert [node.name for node in inserted_before("a", ["x"], theirs, ours)] == ["cast"]
    (found,) = differences(model(relu), model(relu, add))
    assert (found.what, found.text) == ("removed", "Add (add) is lacking, which makes a")


def test_tracing_beside(made: Made) -> None:
    """In a process of its own, which ends when it is closed, and says what it cannot do."""
    bundle = Bundle.open(made("plain")[1])
    fresh = FreshGraphs(bundle.manifest.config, ["head", "nothing"], "float32")
    try:
        path = bundle.graph_path("head", "float32")
        assert differences(onnx.load(path), fresh.model("head")) == []
        with pytest.raises(GlmTrtError, match="nothing: cannot be traced anew: "):
            fresh.model("nothing")
    finally:
        fresh.close()


def test_no_graphs_in_the_dtype(made: Made) -> None:
    checkpoint, bundle = made("plain")
    options = ValidationOptions("eager", "float16", checkpoint, cases=CaseOptions(longest=24))
    report: Any = validate_bundle(bundle, dataclasses.replace(options))
    assert "not compared: the bundle has none in float16" in summary(report)


def test_what_cannot_be_compared_is_no_note(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm_trt.validate.checking.graph_values.probes", lambda *_: [("pass", {})])
    check = checked(made, tmp_path, "layer.1", turned_addition)
    assert check.problem is not None
    assert "the values cannot be compared: layer.1: no probe has a value" in check.problem
