"""The tuning script without a GPU: its candidates, and the launches they are of."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_tune.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    specification = importlib.util.spec_from_file_location("gpu_tune", SCRIPT)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu_tune", script)
    specification.loader.exec_module(script)
    return script


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == "gpu_tune: error: no CUDA device is present\n"


def experts(script: Any, tokens: int) -> Any:
    shapes = (
        ((tokens, 6144), "bfloat16"), ((tokens, 8), "int32"), ((tokens, 8), "float32"),
        ((256, 4096, 6144), "bfloat16"), ((256, 6144, 2048), "bfloat16"),
    )  # fmt: skip
    return script.Call("moe_experts", shapes, (), "sm90")


def test_launches_are_those_of_the_call(script: Any) -> None:
    few = [launch.kernel for _, launch, _ in script.active_launches(experts(script, 1))]
    assert few == ["gate_up_pairs", "down_tokens"]
    many = [launch.kernel for _, launch, _ in script.active_launches(experts(script, 64))]
    assert many == ["count_pairs", "sort_pairs", "gate_up_tiles", "down_tiles", "sum_slots"]


def test_candidates_differ_and_leave_what_others_rely_on(script: Any) -> None:
    call = experts(script, 8192)
    for _, launch, config in script.active_launches(call):
        found = script.candidates(call, config, 40)
        assert config not in found
        assert len({repr(sorted(of.items())) for of in found}) == len(found)
        assert all(of.keys() == config.keys() for of in found), launch.kernel
        # First those with one other number, and tiles keep their rows, which others count on.
        assert sum(found[0][name] != config[name] for name in config) == 1
        assert all(of.get("BLOCK_M") == config.get("BLOCK_M") for of in found)


def test_another_configuration_is_of_one_launch(script: Any) -> None:
    launches = script.launches_of("moe_experts")
    index, _, config = next(script.active_launches(experts(script, 1)))
    other = config | {"num_warps": 8}
    changed = script.with_config(launches, index, other)
    assert changed.steps[index].config("sm90", "bfloat16") == other
    assert [a for i, a in enumerate(changed.steps) if i != index] == [
        a for i, a in enumerate(launches.steps) if i != index
    ]
