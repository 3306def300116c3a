"""The GPU script without a GPU: what it can say here, and its comparison."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "gpu_operators.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: use make gpu")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 3
    assert "no CUDA device" in done.stderr


def test_comparison_sees_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    specification = importlib.util.spec_from_file_location("gpu_operators", SCRIPT)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu_operators", script)
    specification.loader.exec_module(script)
    one = torch.ones(4)
    assert script.compare(one, one + 1e-7, 1e-6) is None
    assert "error" in script.compare(one, one + 1e-3, 1e-6)
    assert "error" in script.compare(one * torch.nan, one, 1e-6)
    assert "1 of 2" in script.compare((one, torch.tensor([1, 2])), (one, torch.tensor([1, 3])), 1)
    assert script.check_cases("cpu") == []  # the torch operators are their references here
