"""Faults put into the files of bundles: validation fails, bisect names block and operator.

And without a fault neither says anything, whatever the seed, in either dtype.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from all_faults import FAULTS
from bundles import BUNDLES, LENGTH, make_checkpoint
from faults import Fault, Faulty
from shared_runs import runs_shared

from glm_trt.cli import main
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.validate.finding.bisect import bisect_bundle
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.validation import ValidationOptions, validate_bundle

Made = Callable[[str], tuple[Path, Path]]


OF_EACH = [pytest.param(name, marks=pytest.mark.slow if name == "mtp" else ()) for name in BUNDLES]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OF_EACH)
def test_no_fault_no_finding(made: Made, shared_walks: None, name: str, dtype: str) -> None:
    """Before the faults, to which its runs are known."""
    checkpoint, bundle = made(name)
    backend = "onnxruntime" if dtype == "float32" else "graph"
    options = ValidationOptions(backend, dtype, checkpoint)
    with runs_shared(right=True):
        report = validate_bundle(bundle, options)
        assert report["ok"], problems(report)
        assert bisect_bundle(bundle, options)["ok"]


PUT = [
    pytest.param(fault, id=fault.name, marks=pytest.mark.slow if fault.slow else ())
    for fault in FAULTS
]


@pytest.fixture(params=PUT)
def faulty(
    made: Made, shared_walks: None, tmp_path: Path, request: pytest.FixtureRequest
) -> tuple[Fault, list[str]]:
    """A fault, and what validates the bundle that has it."""
    fault: Fault = request.param
    checkpoint, bundle = made(fault.of)
    copy = Faulty(bundle, tmp_path / "faulty")
    fault.edit(copy)
    copy.seal()
    options = ["--checkpoint", str(checkpoint), "--longest", str(LENGTH), "--json"]
    return fault, [str(tmp_path / "faulty"), *options]


def test_a_fault_is_found_and_named(
    faulty: tuple[Fault, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    fault, arguments = faulty
    # Half of the faults in the checkpoint's other dtype: both have to find each kind of them.
    other = fault.dtype == "bfloat16" if fault.dtype else FAULTS.index(fault) % 2
    dtype = ["--dtype", "bfloat16"] if other else []
    with runs_shared(right=False):
        assert main(["validate", *arguments, *dtype]) == 1
        report = json.loads(capsys.readouterr().out)
        bad = [block["name"] for block in report["blocks"] if not block["ok"]]
        assert bad[:1] == [fault.block]
        assert main(["bisect", *arguments, *dtype]) == 1
        found = json.loads(capsys.readouterr().out)
    assert found["block"] == fault.block
    assert found["operator"]["op_type"] in fault.operators
    # Never all values at once.
    assert all(len(step["marked"]) < 30 for step in found["steps"])


def test_there_are_enough_of_every_kind() -> None:
    assert len(FAULTS) >= 15
    assert {fault.of for fault in FAULTS} == {*BUNDLES}


SEEDS = 20
DRAWN = [
    pytest.param(name, seed, marks=() if (name, seed) == ("plain", 0) else pytest.mark.slow)
    for name in BUNDLES
    for seed in range(SEEDS)
]


@pytest.mark.parametrize(("name", "seed"), DRAWN)
def test_no_fault_no_failure_over_seeds(tmp_path: Path, name: str, seed: int) -> None:
    """Other weights and ids each time; of hybrids, two kinds in turns."""
    hybrid = "shared_across" if seed % 2 else "three_to_one"
    checkpoint = make_checkpoint(name, tmp_path, seed, hybrid)
    options = ExportOptions(("float32", "bfloat16"), LENGTH)
    export_checkpoint(checkpoint, tmp_path / "b", options)
    for backend, dtype in (("onnxruntime", "float32"), ("graph", "bfloat16")):
        settings = ValidationOptions(backend, dtype, cases=CaseOptions(seed=seed))
        report = validate_bundle(tmp_path / "b", settings)
        assert report["ok"], problems(report)


def problems(report: dict[str, Any]) -> list[str]:
    parts = [*report["blocks"], report["end_to_end"], *filter(None, [report["runtime"]])]
    return [problem["text"] for part in parts for problem in part["problems"]]
