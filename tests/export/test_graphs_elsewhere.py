"""Exported graphs in tools that are not ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from polygraphy.backend.onnx import fold_constants
from traces import trace_once

from glm_trt.cli import main
from glm_trt.engines.python.cut_graph import expert_model
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.passes.nodes import every_node
from glm_trt.model.checkpoint.presets import preset_config
from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.contract import StackedExperts
from glm_trt.plugins.folders import CONTRACTS
from glm_trt.validate.saving.polygraphy_run import block_feeds

ROOT = Path(__file__).parent.parent.parent

NAMES = {"batch", "sequence", "capacity", "selected", "tokens"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polygraphy leaves a file of onnxruntime's shape inference in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def graphs(tiny_bundle: Path) -> dict[str, onnx.ModelProto]:
    """Every kind of the tiny bundle, and one with linear attention."""
    bundle = Bundle.open(tiny_bundle)
    found = {kind: onnx.load(bundle.graph_path(kind, "float32")) for kind in bundle.kinds}
    hybrid = ModelConfig.from_dict(preset_config("glm-5.1-hybrid", "tiny"))
    return found | {"sparse_linear": trace_once(hybrid, "sparse_linear", torch.float32)}


def test_axes_opset_and_constants(graphs: dict[str, onnx.ModelProto]) -> None:
    seen: set[str] = set()
    for kind, model in graphs.items():
        graph = model.graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            axes = [dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param]
            assert {axis.partition("_times_")[0] for axis in axes} <= NAMES, (kind, value.name)
            seen.update(axes)
        imports = (model.opset_import, *(body.opset_import for body in model.functions))
        opsets = {entry.version for of in imports for entry in of if not entry.domain}
        assert opsets == {27 if "linear" in kind else 24}
        for node in every_node(model):
            if node.op_type == "Constant":
                (attribute,) = node.attribute
                assert attribute.name == "value" or attribute.ref_attr_name
    assert seen >= NAMES


@pytest.mark.parametrize(
    "operator", [name for name, c in CONTRACTS.items() if isinstance(c.form, StackedExperts)]
)
def test_a_graph_of_one_expert_declares_no_more(operator: str) -> None:
    model = expert_model(
        CONTRACTS[operator], helper.np_dtype_to_tensor_dtype(torch.zeros(1).numpy().dtype)
    )
    assert max(entry.version for entry in model.opset_import if not entry.domain) <= 24


def feeds_of(bundle: Path, kind: str) -> dict[str, np.ndarray]:
    (feeds,) = block_feeds(str(bundle), kind, "float32", None)
    return feeds


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def check_folding(bundle: Path, kind: str) -> None:
    """Folded by Polygraphy, the graph loads in onnxruntime and gives the same."""
    model = onnx.load(Bundle.open(bundle).graph_path(kind, "float32"))
    feeds = feeds_of(bundle, kind)
    expected = outputs(model, feeds)
    folded = fold_constants(model, copy=True)
    assert len(folded.graph.node) <= len(model.graph.node) or folded.graph.initializer
    for a, b in zip(expected, outputs(folded, feeds), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def check_line(bundle: Path, kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed line works as it stands, from another folder."""
    arguments = ["inspect", str(bundle), "--polygraphy", kind, "-o", str(place)]
    capsys.readouterr()
    assert main(arguments) == 0
    line = capsys.readouterr().out
    tools = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, cwd=place, env=environment, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "PASSED" in done.stdout


@pytest.mark.parametrize("kind", ["embedding", "dense_indexed", "sparse_indexed", "head"])
def test_folded_by_polygraphy(tiny_bundle: Path, kind: str) -> None:
    check_folding(tiny_bundle, kind)


def test_the_line_for_polygraphy_runs(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_line(tiny_bundle, "sparse_indexed", tmp_path, capsys)


@pytest.mark.slow
def test_every_kind_of_both_bundles(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, hybrid = tmp_path / "checkpoint", tmp_path / "hybrid"
    made = ["make-checkpoint", "glm-5.1-hybrid", "--scale", "tiny", "-o", str(checkpoint)]
    assert main(made) == 0
    assert main(["export", str(checkpoint), "-o", str(hybrid)]) == 0
    for bundle in (tiny_bundle, hybrid):
        for kind in Bundle.open(bundle).kinds:
            check_folding(bundle, kind)
            check_line(bundle, kind, tmp_path, capsys)


def test_what_the_line_cannot_be_is_said(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect = ["inspect", str(tiny_bundle)]
    for arguments, message in (
        (["--polygraphy", "layer.99"], "no block or kind layer.99"),
        (["--polygraphy", "head", "--dtype", "bfloat16"], "expected float32 or float16"),
        (["--polygraphy", "head", "--inputs", str(tmp_path)], "head.inputs.json: not found"),
        (["--inputs", str(tmp_path)], "goes with --polygraphy"),
    ):
        assert main([*inspect, *arguments]) == 2
        assert message in capsys.readouterr().err
