"""Bisecting: reproducers that run elsewhere, faults that vanish when one looks, blind backends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from all_faults import FAULTS
from faults import Faulty

from glm_trt.cli import main
from glm_trt.engines.python import onnxruntime_batch
from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.errors import BundleError
from glm_trt.validate.checking.graph_values import probes as graph_probes
from glm_trt.validate.finding.bisect import bisect_bundle, describe_finding
from glm_trt.validate.finding.operator_search import OperatorSearch
from glm_trt.validate.running.reference import Reference
from glm_trt.validate.running.subjects import open_subject
from glm_trt.validate.validation import ValidationOptions

pytestmark = pytest.mark.usefixtures("shared_walks")
Made = Callable[[str], tuple[Path, Path]]


def faulty_bundle(made: Made, name: str, place: Path) -> tuple[Path, ValidationOptions]:
    fault = next(fault for fault in FAULTS if fault.name == name)
    checkpoint, bundle = made(fault.of)
    copy = Faulty(bundle, place / "faulty")
    fault.edit(copy)
    copy.seal()
    return place / "faulty", ValidationOptions(checkpoint=checkpoint)


@pytest.mark.parametrize("name", ["larger_epsilon", "scale_of_the_absorbed_width"])
def test_reproducer(made: Made, tmp_path: Path, name: str) -> None:
    """What is written runs on its own and shows the fault: onnxruntime gives what was found."""
    bundle, options = faulty_bundle(made, name, tmp_path)
    report = bisect_bundle(bundle, options, tmp_path / "out")
    small = report["reproducer"]
    assert small["tokens"] <= 4 and small["bytes"] < 1 << 20
    place = tmp_path / "out"
    onnx.checker.check_model(onnx.load(place / "operator.onnx"))
    values = np.load(place / "values.npz")
    at = tuple(small["coordinates"])
    assert values["expected"][at] == pytest.approx(small["expected"])
    assert values["found"][at] == pytest.approx(small["found"])
    done = subprocess.run([sys.executable, "-I", "reproduce.py"], cwd=place, capture_output=True,
                          text=True, check=True)  # fmt: skip
    line = done.stdout.splitlines()[-1]
    from_expected, from_found = map(float, re.findall(r"[\d.]+(?:e-\d+)?(?= from)", line))
    assert from_expected > 1e-4 and from_found < 1e-5, line
    assert json.loads((place / "finding.json").read_text())["block"] == report["block"]
    assert report["value"] in (place / "README.md").read_text()
    text = describe_finding(report)
    assert report["operator"]["op_type"] in text and str(place) in text
    # Once more to the same place; never over something else.
    bisect_bundle(bundle, options, place)
    (tmp_path / "mine").mkdir()
    with pytest.raises(BundleError, match="exists and is not a reproducer"):
        bisect_bundle(bundle, options, tmp_path / "mine")


def test_a_graph_that_is_not_as_exported_is_said(made: Made, tmp_path: Path) -> None:
    bundle, options = faulty_bundle(made, "no_routed_scaling", tmp_path)
    assert "MoeRouting" in bisect_bundle(bundle, options)["graph_differs"]
    bundle, options = faulty_bundle(made, "permuted_experts", tmp_path / "other")
    assert bisect_bundle(bundle, options)["graph_differs"] is None


def test_a_fault_of_what_is_fused_goes_away_when_it_is_looked_at(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an optimiser's would that joins operators wrongly, unless a value between is wanted."""
    run = OnnxruntimeBackend.run_block
    mark = OnnxruntimeBackend.mark
    marked: dict[str, Any] = {}

    def noted(self: OnnxruntimeBackend, kind: str, names: tuple[str, ...]) -> None:
        marked[kind] = names
        mark(self, kind, names)

    def faulty(self: OnnxruntimeBackend, block: Block, inputs: dict[str, Any]) -> Any:
        outputs = run(self, block, inputs)
        if block.name == "layer.1" and not marked.get(block.kind):
            outputs["hidden_out"] = outputs["hidden_out"] * np.float32(1.01)
        return outputs

    monkeypatch.setattr(OnnxruntimeBackend, "run_block", faulty)
    monkeypatch.setattr(OnnxruntimeBackend, "mark", noted)
    checkpoint, bundle = made("plain")
    report = bisect_bundle(bundle, ValidationOptions(checkpoint=checkpoint))
    assert (report["block"], report["value"]) == ("layer.1", "hidden_out")
    assert report["vanished"] and "right when more is marked" in describe_finding(report)


def test_a_backend_without_inner_values(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its block is named, and that output of which all of the block's operators are behind."""
    bundle, options = faulty_bundle(made, "heads_out_of_order", tmp_path)
    arguments = [str(bundle), "--backend", "eager", "--checkpoint", str(options.checkpoint)]
    assert main(["bisect", *arguments]) == 1
    text = capsys.readouterr().out
    assert "layer.2 is the first block out of tolerance" in text and "hidden_out" in text


def test_the_command_on_a_right_bundle(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, bundle = made("hybrid")
    assert main(["bisect", str(bundle), "--checkpoint", str(checkpoint)]) == 0
    assert "no block is out of tolerance" in capsys.readouterr().out


def test_what_was_inserted_is_named_itself(made: Made, tmp_path: Path) -> None:
    bundle, options = faulty_bundle(made, "experts_through_half_precision", tmp_path)
    report = bisect_bundle(bundle, options)
    assert report["block"] == "layer.1"
    assert [node["op_type"] for node in report["inserted"]] == ["Cast", "Cast"]
    assert "inserted      Cast (narrowed), which is not exported" in describe_finding(report)


def test_an_initializer_is_part_of_a_graph(made: Made, tmp_path: Path) -> None:
    bundle, options = faulty_bundle(made, "one_frequency_off", tmp_path)
    report = bisect_bundle(bundle, options)
    assert "values differ, first at" in report["graph_differs"]
    assert report["inserted"] == []


def test_inner_values_where_no_output_is_bad_by_itself(made: Made) -> None:
    """A block may be out of tolerance over all its runs, and in none of them."""
    checkpoint, bundle = made("plain")
    opened = Bundle.open(bundle)
    reference = Reference(opened, checkpoint)
    block = opened.blocks[2]
    subject = open_subject(opened, "graph", "bfloat16")
    model = onnx.load(opened.graph_path(block.kind, "bfloat16"))
    weights = reference.weights(block, "float64"), reference.weights(block, "bfloat16")
    probes = dict(graph_probes(opened, block, "bfloat16"))
    names = [x.name for x in model.graph.input if x.name not in weights[0]]
    inputs = {
        name: x.astype(np.float32) if x.dtype == np.float64 else x
        for name, x in probes["prefill"].items() if name in names
    }  # fmt: skip

    def run(marked: tuple[str, ...]) -> dict[str, Any]:
        subject.mark(block.kind, marked)
        return subject.run_block(block, inputs)

    found = OperatorSearch(opened.config, model, weights, "bfloat16").search(run, inputs)
    assert found.suspected and found.bad is not None
    assert len(found.steps) > 1 and len(found.bad.nodes) == 1
    assert "the largest share" in found.bad.problem


def test_a_fault_of_the_runtime_is_followed_into_its_layers(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block is right alone; in a pass, one is given the past of another pass."""
    bind = onnxruntime_batch._Pass.bind

    def faulty(self: Any, block: Block, inputs: Any, outputs: Any, turn: int = 0) -> Any:
        if block.name == "layer.2":
            inputs = inputs | {"past_lengths": np.zeros_like(self.past)}
        return bind(self, block, inputs, outputs, turn)

    monkeypatch.setattr(onnxruntime_batch._Pass, "bind", faulty)
    checkpoint, bundle = made("plain")
    report = bisect_bundle(bundle, ValidationOptions(checkpoint=checkpoint))
    assert (report["block"], report["layer"]["block"]) == ("runtime", "layer.2")
    assert "layer         layer.2: the runtime parts there" in describe_finding(report)
