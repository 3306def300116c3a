"""The GPU script without a GPU: what it can say here, and its comparison."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "gpu_operators.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: use make gpu")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 3
    assert "no CUDA device" in done.stderr


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    specification = importlib.util.spec_from_file_location("gpu_operators", SCRIPT)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu_operators", script)
    specification.loader.exec_module(script)
    return script


def test_comparison_sees_differences(script: Any) -> None:
    one = torch.ones(4)
    assert script.compare(one, one + 1e-7, 1e-6) is None
    assert "error" in script.compare(one, one + 1e-3, 1e-6)
    assert "error" in script.compare(one * torch.nan, one, 1e-6)
    assert "1 of 2" in script.compare((one, torch.tensor([1, 2])), (one, torch.tensor([1, 3])), 1)
    # Of chosen indices the order does not count, and a share may differ.
    chosen, others = torch.tensor([[4, 2, 9, 7]]), torch.tensor([[2, 4, 8, 7]])
    assert script.compare(chosen, others, 1, 0.25) is None
    assert "1 of 4" in script.compare(chosen, others, 1, 0.2)
    assert script.check_cases("cpu")[1] == []  # the torch operators are their references here


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_quantised_operators_are_timed_against_the_same_product(
    script: Any, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    tokens, (count, hidden, inner) = (1, 20), (12, 288, 160)
    works = sys.modules["gpu_works"].quantized_works(
        "cpu", dtype, (160, 288), (count, hidden, inner), tokens
    )
    assert len({work.name for work in works}) == len(works) == 5 * len(tokens)
    for work in works:
        # Here the operators are their references. Quantised tokens are rounded once more.
        rounded = dtype != torch.float32
        tolerance = script.EAGER_TOLERANCE if rounded else 1e-5
        assert script.compare(work.ours(), work.theirs(), tolerance) is None, work.name
        assert work.ours().dtype == dtype


def test_bytes_and_products_of_quantised_operators(script: Any) -> None:
    works = {w.name: w for w in sys.modules["gpu_works"].quantized_works(
        "cpu", torch.bfloat16, (160, 288), (12, 288, 160), (1,))}  # fmt: skip
    moved = (160 + 288) * 2
    assert works["fp8, 1 tokens"].bytes == 160 * 288 + 2 * 3 * 4 + moved
    assert works["nvfp4, 1 tokens"].bytes == 160 * 288 / 2 + 160 * 288 / 16 + moved
    assert works["fp8, 1 tokens"].products == 2 * 160 * 288
    # A token's eight experts, and no others.
    one = 3 * 288 * 160
    fp8 = works["fp8 experts, 1 tokens"]
    assert fp8.bytes == 8 * (one + 4 * (2 * 2 * 3 + 3 * 2)) + 2 * 288 * 2
    nvfp4 = works["nvfp4 experts, 1 tokens"]
    assert nvfp4.bytes == 8 * (one / 2 + one / 16 + 3 * 4) + 2 * 288 * 2
    assert fp8.products == nvfp4.products == 2 * 8 * one
