"""An onnx that is too old for a graph is named, with the one that is needed."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from traces import TRACE

from glm_trt.cli import main
from glm_trt.export import trace
from glm_trt.export.onnx_version import RELEASES, require_opset
from glm_trt.model.errors import MissingCapabilityError
from glm_trt.plugins.common.onnx_text import OPSET


def test_releases_are_those_of_onnx() -> None:
    first = {}
    for release, _, opset, *_ in onnx.helper.VERSION_TABLE:
        first.setdefault(opset, release)
    assert {opset: first[opset] for opset in RELEASES} == {
        opset: f"{release}.0" for opset, release in RELEASES.items()
    }
    assert max(RELEASES) == OPSET  # the newest that a graph of ours may have


def test_a_graph_that_this_onnx_knows() -> None:
    require_opset(onnx.ModelProto(opset_import=[onnx.helper.make_opsetid("", 24)]), "x")


def test_an_older_onnx_is_refused_before_the_checker_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: OPSET - 1)
    monkeypatch.setattr(onnx, "__version__", "1.21.0")
    monkeypatch.setattr(trace, "trace_block", TRACE)  # not one that was traced before
    checkpoint = str(tmp_path / "checkpoint")
    assert main(["make-checkpoint", "glm-5.1-hybrid", "-o", checkpoint]) == 0
    assert main(["export", checkpoint, "-o", str(tmp_path / "bundle")]) == 3
    error = capsys.readouterr().err
    assert "linear" in error and "needs onnx 1.22 or newer, found onnx 1.21.0" in error
    assert not (tmp_path / "bundle").exists()


def test_the_graph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 24)
    model = onnx.ModelProto(opset_import=[onnx.helper.make_opsetid("", 27)])
    with pytest.raises(MissingCapabilityError, match=r"^kind: .* opset 27: .*\(opset 24\)"):
        require_opset(model, "kind")
