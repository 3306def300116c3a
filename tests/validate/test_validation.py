"""Validation passes what is right, and names the block of every fault put into a backend."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import SHAPES, make_oracle, save

from glm_trt.cli import main
from glm_trt.engines.bundle import BundleBlock
from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeRuntime
from glm_trt.export.bundle import ExportOptions, export_checkpoint
from glm_trt.model.errors import CheckpointError
from glm_trt.model.safetensors_file import TensorFiles
from glm_trt.validate.validation import validate_bundle

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"
Arrays = dict[str, Any]
Run = Callable[[BundleBlock, Arrays], Arrays]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of experts and layers that share positions, so that every path is compared."""
    place = tmp_path_factory.mktemp("validate")
    save(make_oracle(**SHAPES["fewer_groups"] | SHAPES["shared_indexer"]), place / "c")
    export_checkpoint(place / "c", place / "b", ExportOptions(dtypes=("float32",)))
    return place / "b"


def test_right_bundle_passes(bundle: Path) -> None:
    report = validate_bundle(bundle)
    assert report["ok"], report
    assert not report["end_to_end"]["problems"]
    rows = report["blocks"][-2]["choices"]["expert_indices"]
    assert rows["rows"] == rows["equal"] + rows["near_ties"] > 100
    assert report["end_to_end"]["greedy_tokens"]["compared"] > 10
    json.dumps(report, allow_nan=False)


def half_split_rotation(run: Run, block: BundleBlock, inputs: Arrays) -> Arrays:
    """The angles of the next pair: what a wrong pairing does."""
    if "cos" in inputs:
        inputs = inputs | {"cos": np.roll(inputs["cos"], 1, -1)}
    return run(block, inputs)


def stale_state(run: Run, block: BundleBlock, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if "kv_cache_out" in outputs and inputs["past_lengths"][0] > 0:
        outputs["kv_cache_out"] = inputs["kv_cache"]
    return outputs


def overwritten_state(run: Run, block: BundleBlock, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if "kv_cache_out" in outputs and inputs["past_lengths"][0] > 0:
        outputs["kv_cache_out"][:, :, 0, 0] += 1e-3
    return outputs


def one_position_late(run: Run, block: BundleBlock, inputs: Arrays) -> Arrays:
    if "past_lengths" in inputs and "cos" not in inputs:
        inputs = inputs | {"past_lengths": inputs["past_lengths"] + 1}
    return run(block, inputs)


def not_a_number(run: Run, block: BundleBlock, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if "hidden_out" in outputs and outputs["hidden_out"].shape[1] > 7:
        outputs["hidden_out"][-1, 7, 3] = np.nan
    return outputs


def other_expert(run: Run, block: BundleBlock, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if "expert_indices" in outputs:
        row = outputs["expert_indices"][0]
        row[-1] = next(e for e in range(8) if e not in row)
    return outputs


def last_position_unseen(run: Run, block: BundleBlock, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if "topk_indices" in outputs:
        row = outputs["topk_indices"][0, -1]
        row[(row >= 0).sum() - 1] = -1
    return outputs


FAULTS = [half_split_rotation, stale_state, overwritten_state, one_position_late, not_a_number,
          other_expert, last_position_unseen]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found(bundle: Path, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    run = OnnxruntimeRuntime.run_block

    def faulty(self: OnnxruntimeRuntime, block: BundleBlock, inputs: Arrays) -> Arrays:
        return fault(lambda b, i: run(self, b, i), block, inputs)

    monkeypatch.setattr(OnnxruntimeRuntime, "run_block", faulty)
    report = validate_bundle(bundle)
    assert not report["ok"]
    json.dumps(report, allow_nan=False)


def swapped_halves(read: Any, name: str) -> Any:
    other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
    for part in other.keys() if ".experts." in name else ():
        if part in name:
            return read(name.replace(part, other[part]))
    return read(name)


def permuted_experts(read: Any, name: str) -> Any:
    found = re.match(r"(.*\.experts\.)(\d)(\.down_proj.*)", name)
    return read(f"{found[1]}{(int(found[2]) + 1) % 8}{found[3]}") if found else read(name)


def no_correction_bias(read: Any, name: str) -> Any:
    return read(name) * (0 if "correction_bias" in name else 1)


def one_element_off(read: Any, name: str) -> Any:
    array = read(name)
    return array + np.float32(1e-2) * (array == array.max()) if "o_proj" in name else array


def other_heads(read: Any, name: str) -> Any:
    array = read(name)
    return np.roll(array, 22, 0) if "kv_b_proj" in name else array  # 10 key and 12 value rows


@pytest.mark.parametrize(
    "fault",
    [swapped_halves, permuted_experts, no_correction_bias, one_element_off, other_heads],
    ids=lambda fault: fault.__name__,
)
def test_a_wrong_weight_is_found_in_its_block(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    read = TensorFiles.tensor  # what the runtime reads through; the reference does not

    def wrong(self: TensorFiles, name: str) -> Any:
        if not name.startswith("model.layers.3."):
            return read(self, name)
        return np.ascontiguousarray(fault(lambda n: read(self, n), name), np.float32)

    monkeypatch.setattr(TensorFiles, "tensor", wrong)
    report = validate_bundle(bundle)
    assert [b["name"] for b in report["blocks"] if not b["ok"]] == ["layer.3"]


def test_a_wrong_binding_is_found_through_the_checkpoint(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glm_trt.engines import bundle as bundles

    init = bundles.Bundle.__init__

    def exchanged(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        a, b = self.blocks[-2], self.blocks[-3]
        self.blocks[-2] = BundleBlock(a.name, a.kind, a.layer, tuple(
            y if x.name == y.name == "self_attn.o_proj.weight" else x
            for x, y in zip(a.bindings, b.bindings, strict=False)
        ))  # fmt: skip

    monkeypatch.setattr(bundles.Bundle, "__init__", exchanged)
    report = validate_bundle(bundle)
    assert [b["ok"] for b in report["blocks"][-3:]] == [True, False, True]


def test_materialized_bundle_against_a_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    assert validate_bundle(tiny_bundle)["reference"] == "the bundle's own weights and bindings"
    assert validate_bundle(tiny_bundle, checkpoint=TINY)["reference"] == str(TINY.resolve())
    save(make_oracle(), tmp_path / "c")
    with pytest.raises(CheckpointError, match="another config"):
        validate_bundle(tiny_bundle, checkpoint=tmp_path / "c")


def test_command_writes_reports(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    directory = tmp_path / "report"
    assert main(["validate", str(bundle), "--report", str(directory)]) == 0
    assert "passed" in capsys.readouterr().out
    assert "| layer.1 |" in (directory / "report.md").read_text()
    assert main(["validate", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert json.loads((directory / "report.json").read_text())["ok"] is True

    run = OnnxruntimeRuntime.run_block
    monkeypatch.setattr(
        OnnxruntimeRuntime, "run_block",
        lambda self, block, inputs: not_a_number(lambda b, i: run(self, b, i), block, inputs),
    )  # fmt: skip
    assert main(["validate", str(bundle), "--report", str(directory)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert "not finite" in (directory / "report.md").read_text()
