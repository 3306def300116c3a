"""Validation passes what is right, and names the block of every fault put into a backend."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from bundles import LENGTH
from checkpoints import SHAPES, make_oracle, save
from hybrids import make_hybrid, save_hybrid

from glm_trt.cli import main
from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.safetensors_file import TensorFiles
from glm_trt.model.errors import CheckpointError
from glm_trt.validate.finding.bisect import describe_finding
from glm_trt.validate.reporting.report_files import schema
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.running.reference import OWN_WEIGHTS
from glm_trt.validate.validation import ValidationOptions, validate_bundle

pytestmark = pytest.mark.usefixtures("shared_walks")
TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"
Arrays = dict[str, Any]
Run = Callable[[Block, Arrays], Arrays]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of experts and layers that share positions, so that every path is compared."""
    place = tmp_path_factory.mktemp("validate")
    save(make_oracle(**SHAPES["fewer_groups"] | SHAPES["shared_indexer"]), place / "c")
    export_checkpoint(place / "c", place / "b", ExportOptions(("float32",), max_seq_len=LENGTH))
    return place / "b"


def test_right_bundle_passes(bundle: Path) -> None:
    report = validate_bundle(bundle)
    assert report["ok"], report
    assert not report["end_to_end"]["problems"]
    rows = report["blocks"][-2]["choices"]["expert_indices"]
    assert rows["rows"] == rows["equal"] + rows["near_ties"] > 100
    end = report["end_to_end"]
    assert sum(case["tokens"] for case in end["greedy"]) > 10
    assert end["top1"] == end["top5"] == 1
    assert report["runtime"]["ok"] and report["runtime_skipped"] is None
    check_schema(report)


def check_schema(report: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(json.dumps(report, allow_nan=False)), schema())


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers: indexed, linear, shared, full, shared, linear."""
    place = tmp_path_factory.mktemp("hybrid")
    save_hybrid(make_hybrid("shared_across"), place / "c")
    export_checkpoint(place / "c", place / "b", ExportOptions(("float32",), max_seq_len=LENGTH))
    return place / "b"


def test_right_hybrid_passes(hybrid: Path) -> None:
    report = validate_bundle(hybrid)
    assert report["ok"], report
    compared = {block["kind"]: set(block["isolated"]) for block in report["blocks"]}
    assert compared["sparse_linear"] == {"hidden_out", "conv_state_out", "recurrent_state_out"}
    assert compared["sparse_full"] == {"hidden_out", "kv_cache_out"}


def half_split_rotation(run: Run, block: Block, inputs: Arrays) -> Arrays:
    """The angles of the next pair: what a wrong pairing does."""
    if "cos" in inputs:
        inputs = inputs | {"cos": np.roll(inputs["cos"], 1, -1)}
    return run(block, inputs)


def stale_state(run: Run, block: Block, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if "kv_cache_out" in outputs and inputs["past_lengths"][0] > 0:
        outputs["kv_cache_out"] = inputs["kv_cache"]
    return outputs


def overwritten_state(run: Run, block: Block, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if "kv_cache_out" in outputs and inputs["past_lengths"][0] > 0:
        outputs["kv_cache_out"][:, :, 0, 0] += 1e-3
    return outputs


def one_position_late(run: Run, block: Block, inputs: Arrays) -> Arrays:
    if "past_lengths" in inputs and "cos" not in inputs:
        inputs = inputs | {"past_lengths": inputs["past_lengths"] + 1}
    return run(block, inputs)


def not_a_number(run: Run, block: Block, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if "hidden_out" in outputs and outputs["hidden_out"].shape[1] > 7:
        outputs["hidden_out"][-1, 7, 3] = np.nan
    return outputs


def other_expert(run: Run, block: Block, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if "expert_indices" in outputs:
        row = outputs["expert_indices"][0]
        row[-1] = next(e for e in range(8) if e not in row)
    return outputs


def last_position_unseen(run: Run, block: Block, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if "topk_indices" in outputs:
        row = outputs["topk_indices"][0, -1]
        row[(row >= 0).sum() - 1] = -1
    return outputs


FAULTS = [half_split_rotation, stale_state, overwritten_state, one_position_late, not_a_number,
          other_expert, last_position_unseen]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found(bundle: Path, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    run = OnnxruntimeBackend.run_block

    def faulty(self: OnnxruntimeBackend, block: Block, inputs: Arrays) -> Arrays:
        return fault(lambda b, i: run(self, b, i), block, inputs)

    monkeypatch.setattr(OnnxruntimeBackend, "run_block", faulty)
    report = validate_bundle(bundle)
    assert not report["ok"]
    if fault is overwritten_state:  # said in the pass that does it, not in one that reads it later
        texts = [problem["text"] for problem in report["blocks"][1]["problems"]]
        assert any("overwrites what it should keep" in text for text in texts), texts
    check_schema(report)


def misshapen_choices(outputs: Arrays) -> None:
    if "topk_indices" in outputs:
        outputs["topk_indices"] = outputs["topk_indices"][..., :-1]


def misshapen_state(outputs: Arrays) -> None:
    if "kv_cache_out" in outputs:
        outputs["kv_cache_out"] = outputs["kv_cache_out"][:, :, :, 0]


def missing_output(outputs: Arrays) -> None:
    outputs.pop("index_keys_out", None)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (misshapen_choices, r"topk_indices: expected shape \[.*16\], found \[.*15\]"),
        (misshapen_state, r"kv_cache_out: expected shape .*24\], found"),
        (missing_output, "index_keys_out: missing"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_outputs_of_another_shape_are_a_finding(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, edit: Any, text: str
) -> None:
    """Not an end of the validation: the blocks behind are compared all the same."""
    run = OnnxruntimeBackend.run_block

    def faulty(self: OnnxruntimeBackend, block: Block, inputs: Arrays) -> Arrays:
        outputs = run(self, block, inputs)
        if block.name == "layer.2":
            edit(outputs)
        return outputs

    monkeypatch.setattr(OnnxruntimeBackend, "run_block", faulty)
    report = validate_bundle(bundle)
    assert [b["name"] for b in report["blocks"] if not b["ok"]] == ["layer.2"]
    texts = [problem["text"] for problem in report["blocks"][3]["problems"]]
    assert any(re.match(text, found) for found in texts), texts
    check_schema(report)


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-plain", "graph"])
def test_a_block_that_does_not_run_fails(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    backend: str,
) -> None:
    """A weight of another shape than its graph expects, as from a wrong binding; whatever a policy
    waives of its layer and of the whole pass.
    """
    from glm_trt.engines.python import onnxruntime_backend
    from glm_trt.model.checkpoint.bindings import bound_tensor
    from glm_trt.validate.running import subjects

    def cut(binding: Any, *rest: Any) -> Any:
        array = bound_tensor(binding, *rest)
        wrong = binding.name == "self_attn.q_b_proj.weight"
        return np.ascontiguousarray(array[:-1]) if wrong else array

    load_weights = subjects.load_weights

    def cut_weights(bindings: Any, *rest: Any) -> Any:
        weights = load_weights(bindings, *rest)
        if "self_attn.q_b_proj.weight" in weights:
            weights["self_attn.q_b_proj.weight"] = weights["self_attn.q_b_proj.weight"][:-1]
        return weights

    monkeypatch.setattr(onnxruntime_backend, "bound_tensor", cut)
    monkeypatch.setattr(subjects, "load_weights", cut_weights)
    arguments = [str(bundle), "--backend", backend, "--dtype", "float32", "--json"]
    names = ("layer.0", "end to end", "runtime")
    rules = [f'[[rule]]\nblock = "{name}"\nwaive = true\nreason = "all"\n' for name in names]
    (tmp_path / "policy.toml").write_text("".join(rules))
    assert main(["validate", *arguments, "--policy", str(tmp_path / "policy.toml")]) == 1
    report = json.loads(capsys.readouterr().out)
    check_schema(report)
    parts = (report["blocks"][1], report["end_to_end"], report["runtime"] or {"problems": []})
    left = {p["problem"] for part in parts for p in part["problems"] if not p["waived"]}
    assert left == {"cannot be run", "not finite", "impossible choices"}
    assert any("cannot be run" in p["text"] for p in report["blocks"][1]["problems"])
    if report["runtime"]:
        assert any("cannot be run" in p["text"] for p in report["runtime"]["problems"])
    assert main(["bisect", *arguments]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["block"] == "layer.0"
    # The product has other columns than the reshape behind it expects, or the graph's type says.
    if found["operator"]:
        assert found["operator"]["op_type"] in ("Gemm", "Reshape")
    else:
        assert "self_attn.q_b_proj.weight" in found["problem"]
    assert "layer.0" in describe_finding(found)


def is_linear(block: Block) -> bool:
    return block.kind.endswith("_linear")


def recurrent_state_not_carried(run: Run, block: Block, inputs: Arrays) -> Arrays:
    if is_linear(block):
        inputs = inputs | {"recurrent_state": np.zeros_like(inputs["recurrent_state"])}
    return run(block, inputs)


def recurrent_state_not_updated(run: Run, block: Block, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if is_linear(block) and inputs["recurrent_state"].any():
        outputs["recurrent_state_out"] = inputs["recurrent_state"]
    return outputs


def transposed_recurrent_state(run: Run, block: Block, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if is_linear(block):
        state = outputs["recurrent_state_out"]
        outputs["recurrent_state_out"] = state.swapaxes(2, 3).reshape(state.shape)
    return outputs


def conv_state_shifted(run: Run, block: Block, inputs: Arrays) -> Arrays:
    outputs = run(block, inputs)
    if is_linear(block):
        outputs["conv_state_out"] = np.roll(outputs["conv_state_out"], 1, -1)
    return outputs


def last_token_taken_for_padding(run: Run, block: Block, inputs: Arrays) -> Arrays:
    if is_linear(block):
        inputs = inputs | {"lengths": inputs["lengths"] - 1}
    return run(block, inputs)


@pytest.mark.parametrize(
    "fault",
    [recurrent_state_not_carried, recurrent_state_not_updated, transposed_recurrent_state,
     conv_state_shifted, last_token_taken_for_padding],
    ids=lambda fault: fault.__name__,
)  # fmt: skip
def test_a_fault_of_linear_layers_is_found_there(
    hybrid: Path, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    run = OnnxruntimeBackend.run_block

    def faulty(self: OnnxruntimeBackend, block: Block, inputs: Arrays) -> Arrays:
        return fault(lambda b, i: run(self, b, i), block, inputs)

    monkeypatch.setattr(OnnxruntimeBackend, "run_block", faulty)
    report = validate_bundle(hybrid)
    assert [b["name"] for b in report["blocks"] if not b["ok"]] == ["layer.1", "layer.5"]


def swapped_queries_and_keys(array: Any, part: str) -> Any:
    if part != "in_proj_qkvz.weight":
        return array
    by_head = array.reshape(2, 40, -1).copy()  # two key heads: 8 + 8 + 12 + 12 rows each
    by_head[:, :16] = by_head[:, [*range(8, 16), *range(8)]]
    return by_head.reshape(array.shape)


def gates_not_grouped_by_key_head(array: Any, part: str) -> Any:
    """All b rows first, as if the file held them so."""
    return array[[0, 1, 4, 5, 2, 3, 6, 7]] if part == "in_proj_ba.weight" else array


def no_decay(array: Any, part: str) -> Any:
    return np.full_like(array, -100) if part == "A_log" else array


def no_time_step_bias(array: Any, part: str) -> Any:
    return np.zeros_like(array) if part == "dt_bias" else array


def reversed_convolution(array: Any, part: str) -> Any:
    return array[:, :, ::-1] if part == "conv1d.weight" else array


def norm_weight_of_another(array: Any, part: str) -> Any:
    return array[::-1] if part == "norm.weight" else array


@pytest.mark.parametrize(
    "fault",
    [swapped_queries_and_keys, gates_not_grouped_by_key_head, no_decay, no_time_step_bias,
     reversed_convolution, norm_weight_of_another],
    ids=lambda fault: fault.__name__,
)  # fmt: skip
def test_a_wrong_weight_of_linear_attention_is_found(
    hybrid: Path, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    read = TensorFiles.tensor

    def wrong(self: TensorFiles, name: str) -> Any:
        prefix = "model.layers.5.linear_attn."
        array = read(self, name)
        if not name.startswith(prefix):
            return array
        return np.ascontiguousarray(fault(array, name.removeprefix(prefix)))

    monkeypatch.setattr(TensorFiles, "tensor", wrong)
    report = validate_bundle(hybrid)
    assert [b["name"] for b in report["blocks"] if not b["ok"]] == ["layer.5"]


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
    init = Bundle.__init__

    def exchanged(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        a, b = self.blocks[-2], self.blocks[-3]
        others = {binding.name: binding for binding in b.bindings}
        self.blocks[-2] = Block(a.name, a.kind, a.layer, tuple(
            others[x.name] if x.name == "self_attn.o_proj.weight" else x for x in a.bindings
        ))  # fmt: skip

    monkeypatch.setattr(Bundle, "__init__", exchanged)
    report = validate_bundle(bundle)
    assert [b["ok"] for b in report["blocks"][-3:]] == [True, False, True]


def test_materialized_bundle_against_a_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    short = ValidationOptions(cases=CaseOptions(longest=4))
    assert validate_bundle(tiny_bundle, short)["reference"] == OWN_WEIGHTS
    report = validate_bundle(tiny_bundle, replace(short, checkpoint=TINY))
    assert report["reference"] == str(TINY.resolve())
    save(make_oracle(), tmp_path / "c")
    with pytest.raises(CheckpointError, match="another config"):
        validate_bundle(tiny_bundle, ValidationOptions(checkpoint=tmp_path / "c"))


def test_command_writes_reports(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    directory = tmp_path / "report"
    assert main(["validate", str(bundle), "--report", str(directory)]) == 0
    assert "passed" in capsys.readouterr().out
    assert "| layer.1 |" in (directory / "report.md").read_text()
    assert "Passed" in (directory / "report.html").read_text()
    assert main(["validate", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert json.loads((directory / "report.json").read_text())["ok"] is True

    run = OnnxruntimeBackend.run_block
    monkeypatch.setattr(
        OnnxruntimeBackend, "run_block",
        lambda self, block, inputs: not_a_number(lambda b, i: run(self, b, i), block, inputs),
    )  # fmt: skip
    assert main(["validate", str(bundle), "--report", str(directory)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert "not finite" in (directory / "report.md").read_text()
