"""Everything that can be validated, on every way of storing weights; what cannot says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from checkpoints import make_oracle, save

from glm_trt.cli import main
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.errors import GlmTrtError
from glm_trt.plugins.common.interpreter import round_to_nearest
from glm_trt.validate.running import walk
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.running.subjects import open_subject
from glm_trt.validate.validation import ValidationOptions, validate_bundle

pytestmark = pytest.mark.usefixtures("shared_walks")
Made = Callable[[str], tuple[Path, Path]]
SUBJECTS = [
    ("onnxruntime-plain", "float32"), ("graph", "float32"), ("graph", "bfloat16"),
    ("eager", "float32"), ("eager", "bfloat16"), ("eager", "float16"), ("eager", "float64"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "backend", "dtype"),
    [(name, *subject) for name in ("plain", "hybrid") for subject in SUBJECTS]
    + [(name, *subject) for name in ("fp8", "nvfp4") for subject in SUBJECTS[:3]],
)
def test_right_ones_pass(made: Made, name: str, backend: str, dtype: str) -> None:
    checkpoint, bundle = made(name)
    options = ValidationOptions(backend, dtype, checkpoint, CaseOptions(longest=40))
    report = validate_bundle(bundle, options)
    assert report["ok"], [b["problems"] for b in report["blocks"]]
    assert report["backend"]["name"] == backend and report["backend"]["dtype"] == dtype
    assert (report["runtime"] is None) == (backend != "onnxruntime-plain")


@pytest.mark.parametrize(
    ("name", "dtype", "longest", "steps"),
    [
        ("plain", "bfloat16", 4, 0),
        pytest.param("plain", "bfloat16", 18, 0, marks=pytest.mark.slow),
        ("hybrid", "float32", 6, 8),
        pytest.param("hybrid", "float32", 6, 64, marks=pytest.mark.slow),
    ],
)
def test_interpreted_kernels_pass(
    made: Made, name: str, dtype: str, longest: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`steps` are those of linear layers, one after another, of which a validation makes 64."""
    monkeypatch.setattr(walk, "STEPS", steps)
    checkpoint, bundle = made(name)
    options = ValidationOptions("kernels", dtype, checkpoint, CaseOptions(longest=longest))
    report = validate_bundle(bundle, options)
    assert report["ok"], [b["problems"] for b in report["blocks"]]


def test_a_wrong_kernel_is_found(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are what runs: a wrong one fails, where the graphs in PyTorch pass."""
    from glm_trt.validate.running import subjects

    run = subjects.run

    def wrong(plan: Any, *rest: Any) -> Any:
        outputs = run(plan, *rest)
        if "moe_experts" in plan.contract.torch_name:
            outputs = (outputs[0] * 1.01, *outputs[1:])
        return outputs

    monkeypatch.setattr(subjects, "run", wrong)
    checkpoint, bundle = made("plain")
    options = ValidationOptions("kernels", "float32", checkpoint, CaseOptions(longest=4))
    report = validate_bundle(bundle, options)
    assert [b["name"] for b in report["blocks"] if not b["ok"]] == ["layer.1", "layer.2"]


@triton.jit
def _narrow(p_in, p_out, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_out + o, tl.load(p_in + o).to(tl.bfloat16))


def test_the_interpreter_rounds_to_the_nearest() -> None:
    round_to_nearest()
    special = [0.0, -0.0, np.inf, -np.inf, 1e-40, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9]
    x = np.concatenate([special, np.random.default_rng(0).standard_normal(119)]).astype(np.float32)
    found = torch.full((128,), torch.nan, dtype=torch.bfloat16)
    _narrow[(1,)](torch.from_numpy(x), found, 128)
    expected = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(found.view(torch.uint16).numpy(), expected)


@pytest.mark.parametrize(
    ("backend", "dtype", "message"),
    [
        ("onnxruntime", "bfloat16", "runs this bundle in float32, not in bfloat16"),
        ("graph", "float16", "no graphs in float16; the bundle has float32, bfloat16"),
        ("tensorrt-rtx", "float16", "runs this bundle in float32, not in float16"),
        ("none", None, "expected one of onnxruntime"),
    ],
)
def test_what_cannot_run_says_why(
    made: Made, backend: str, dtype: str | None, message: str
) -> None:
    bundle = Bundle.open(made("plain")[1])
    with pytest.raises(GlmTrtError, match=message):
        open_subject(bundle, backend, dtype)


def test_without_a_gpu_the_command_says_it(made: Made) -> None:
    """In a process of its own: other tests put a driver's stand-in into this one."""
    command = [sys.executable, "-m", "glm_trt.cli", "validate", str(made("plain")[1])]
    done = subprocess.run([*command, "--backend", "tensorrt-rtx"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "tensorrt-rtx" in done.stderr and not done.stdout


def test_the_command_says_it(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(made("plain")[1])
    for arguments, code, message in (
        (["--backend", "onnxruntime", "--dtype", "bfloat16"], 2, "not in bfloat16"),
        (["--seed", "-1"], 2, "--seed"),
        (["--longest", "0"], 2, "--longest"),
        (["--text", bundle], 2, "directory"),
        (["--report", f"{bundle}/manifest.json"], 2, "expected a directory"),
        (["--policy", f"{bundle}/none.toml"], 2, "none.toml"),
        (["--save", bundle], 2, "exists and is not a saved run"),
    ):
        assert main(["validate", bundle, *arguments]) == code, arguments
        captured = capsys.readouterr()
        assert captured.out == "" and message in captured.err


PEAKS = """
import json, os, sys
from pathlib import Path
from traces import SharedTraces
from glm_trt.validate.running import cases, runtime_check
from glm_trt.validate.checking import graph_check
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.validation import ValidationOptions, validate_bundle
import onnxruntime, torch

# As a model that is not small: the runtime, which holds every weight, is not run.
runtime_check.MOST_WEIGHTS = cases.SMALL = 0
# What is traced beside it, in a process of its own, was traced for the bundles' export.
graph_check.FreshGraphs = SharedTraces
for backend in sys.argv[3:]:
    for bundle in sys.argv[1:3]:
        # Each in a process of its own, whose peak begins with what modules take.
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0, (backend, bundle)
            continue
        options = ValidationOptions(backend, cases=CaseOptions(longest=1))
        assert validate_bundle(Path(bundle), options)["ok"]
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        peak = 1024 * int(status["VmHWM"].split()[0])
        print(json.dumps([backend, peak]), flush=True)
        os._exit(0)
"""


SUPPORT = Path(__file__).parent.parent / "support"
# What is freed goes back to the system at once, so that a peak is of what is held; and threads of a
# model that is not small would spin for one another beside other tests.
RETURNED = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}  # fmt: skip


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Bundles of 3 and 8 layers, each of 25 MB in float32 and of 50 in float64."""
    place = tmp_path_factory.mktemp("deep")
    wide = dict(moe_intermediate_size=4860)  # all else as others trace it
    for layers in (3, 8):
        save(make_oracle(num_hidden_layers=layers, **wide), place / f"c{layers}")
        options = ExportOptions(("float32",), max_seq_len=8)
        export_checkpoint(place / f"c{layers}", place / str(layers), options)
    return {layers: place / str(layers) for layers in (3, 8)}


def test_memory_is_that_of_one_block(deep: dict[int, Path]) -> None:
    """Five more layers, which are 125 MB in float32 alone, take no more memory than one does."""
    backends = ("onnxruntime", "graph", "eager")
    code = f"import sys; sys.path.append({str(SUPPORT)!r})\n{PEAKS}"
    command = [sys.executable, "-c", code, *map(str, deep.values()), *backends]
    done = subprocess.run(command, env=os.environ | RETURNED, stdout=subprocess.PIPE, text=True,
                          check=True)  # fmt: skip
    peaks: dict[str, list[int]] = {backend: [] for backend in backends}
    for line in done.stdout.splitlines():
        backend, peak = json.loads(line)
        peaks[backend].append(peak)
    assert all(len(of) == 2 and of[1] - of[0] < 25_000_000 for of in peaks.values()), peaks
