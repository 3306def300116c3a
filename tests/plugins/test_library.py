"""What libglm_trt_plugins.so refuses, and what it needs of a machine.

`test_kernels.py` runs every case of every plugin.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from plugin_harness import Harness, up_to, without_gaps
from stand_in_device import LAUNCH

from glm_trt.plugins.folders import part_of

ROOT = Path(__file__).parent.parent.parent


def test_older_capability_of_the_same_major_is_used(harness: Harness) -> None:
    launches, case, inputs, outputs = _routing()
    harness.run(launches.contract, inputs, case.attributes, outputs, 86)
    with pytest.raises(RuntimeError, match="no kernels for sm75; this library has sm80"):
        harness.run(launches.contract, inputs, case.attributes, outputs, 75)
    with pytest.raises(RuntimeError, match="no kernels for sm103"):
        harness.run(launches.contract, inputs, case.attributes, outputs, 103)


def test_absent_kernel_is_named(harness: Harness) -> None:
    launches, case, inputs, outputs = _routing()
    message = (
        r"MoeRouting: no kernel route_tokens for sm90 in float32, BLOCK_E = 256, BLOCK_K = 16, "
        r"multiples of 16 = 1: this library holds only what some graphs need on sm80; build the "
        r"whole one \(make plugins\)"
    )
    with pytest.raises(RuntimeError, match=message):
        harness.run(launches.contract, inputs, case.attributes, outputs, 90)


def test_engine_of_another_version_is_refused(harness: Harness) -> None:
    launches, case, inputs, outputs = _routing()
    built = harness.build(
        launches.contract, up_to(launches.contract, (*inputs, *outputs)), case.attributes
    )
    built.change("glm_trt_version", b"9.9.9")
    with pytest.raises(RuntimeError, match=r"built with libglm_trt_plugins 9\.9\.9, this is 0"):
        harness.enqueue(built, inputs, outputs, 80, None)


def test_kernels_are_loaded_into_each_context(harness: Harness) -> None:
    """Also into one whose handle an earlier one had."""
    launches, case, inputs, outputs = _routing()
    for _ in range(2):
        harness.run(launches.contract, inputs, case.attributes, outputs, 80)
        harness.renew_context()


@contextmanager
def in_executor(harness: Harness) -> Iterator[None]:
    """Kernels are done by the stand-in's child process meanwhile."""
    device = harness._device
    assert device is not None
    device.library.standInOnLaunch(LAUNCH())
    try:
        yield
    finally:
        device.library.standInOnLaunch(device._callback)


def test_the_executor_does_what_kernels_do(harness: Harness) -> None:
    """In another process, on the same memory."""
    launches, case, inputs, outputs = _routing()
    again = [torch.zeros_like(of) for of in outputs]
    harness.run(launches.contract, inputs, case.attributes, outputs, 80)
    with in_executor(harness):
        harness.run(launches.contract, inputs, case.attributes, again, 80)
    assert harness.launches == []  # none was done here
    assert all(map(torch.equal, outputs, again))


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    ("missing", "rule"), [(248, "out-of-bounds: .* wrote beside"),
                          (256, "out-of-bounds: .* touched 0x"),
                          (2048, "not-allocated: .* p_stats")],
)  # fmt: skip
def test_work_beyond_the_workspace_is_told(
    harness: Harness, elsewhere: bool, missing: int, rule: str
) -> None:
    launches = import_module("glm_trt.plugins.sparse_mla.launch").LAUNCHES
    cases = import_module("glm_trt.plugins.sparse_mla.cases").CASES
    case = next(of for of in cases if of.name == "split")
    inputs = case.make(torch.Generator().manual_seed(0), torch.float32)
    found = part_of("sparse_mla", "reference").reference(*inputs, **case.attributes)
    built = harness.build(
        launches.contract, up_to(launches.contract, (*inputs, found)), case.attributes
    )
    built.workspace_bytes -= missing  # of what it was built for, and believes to have
    where = in_executor(harness) if elsewhere else nullcontext()
    with where, pytest.raises(AssertionError, match=rule):
        harness.enqueue(built, inputs, [torch.zeros_like(found)], 80, 0)


@pytest.mark.parametrize("name", ["causal_mla", "sparse_mla"])
def test_sm86_has_the_shared_memory_of_kernels_of_sm80(harness: Harness, name: str) -> None:
    """99 KB, not 163: the widest case, in a context that has no kernels yet."""
    launches = import_module(f"glm_trt.plugins.{name}.launch").LAUNCHES
    cases = import_module(f"glm_trt.plugins.{name}.cases").CASES
    case = next(of for of in cases if of.name == "wide")
    inputs = case.make(torch.Generator().manual_seed(0), torch.bfloat16)
    wanted = part_of(name, "reference").reference(*inputs, **case.attributes)
    given = without_gaps(launches.contract, inputs, case.attributes)
    found = torch.zeros_like(wanted)
    harness.renew_context()
    harness.run(launches.contract, given, case.attributes, [found], 86)
    difference = (found.double() - wanted.double()).norm()
    assert difference <= launches.contract.tolerance["bfloat16"] * wanted.double().norm()
    harness.renew_context()


def test_attributes_must_be_there(harness: Harness) -> None:
    launches, case, inputs, outputs = _routing()
    attributes = {k: v for k, v in case.attributes.items() if k != "top_k"}
    with pytest.raises(RuntimeError, match="attribute top_k: missing"):
        harness.run(launches.contract, inputs, attributes, outputs, 80)


def test_addresses_must_be_aligned(harness: Harness) -> None:
    launches, case, inputs, outputs = _routing()
    shifted = torch.empty(inputs[0].numel() + 1)[1:].view(inputs[0].shape).copy_(inputs[0])
    with pytest.raises(RuntimeError, match="logits: expected an address at a multiple of 16"):
        harness.run(launches.contract, [shifted, inputs[1]], case.attributes, outputs, 80)


def _routing() -> Any:
    launches = import_module("glm_trt.plugins.moe_routing.launch").LAUNCHES
    case = import_module("glm_trt.plugins.moe_routing.cases").CASES[0]
    inputs = case.make(torch.Generator().manual_seed(0), torch.float32)
    k = case.attributes["top_k"]
    tokens = inputs[0].shape[0]
    return (
        launches,
        case,
        inputs,
        [torch.zeros(tokens, k, dtype=torch.int32), torch.zeros(tokens, k)],
    )


def test_library_stands_alone(library: Path) -> None:
    assert library.stat().st_size < 64 << 20
    symbols = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True,
                             text=True, check=True).stdout  # fmt: skip
    names = [line.split()[-1] for line in symbols.splitlines()]
    assert not [n for n in names if "nvinfer" in n or n.startswith(("cu", "nv"))]
    exported = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True,
                              text=True, check=True).stdout  # fmt: skip
    assert sorted(line.split()[-1] for line in exported.splitlines()) == [
        "getCreators", "setLoggerFinder"
    ]  # fmt: skip
    content = library.read_bytes()
    assert str(ROOT).encode() not in content


def test_without_a_driver_enqueue_says_so(library: Path, tmp_path: Path) -> None:
    """In a fresh process, where what is found as libcuda.so.1 cannot be loaded."""
    (tmp_path / "libcuda.so.1").write_text("no library")
    script = f"""
import pathlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_library
from plugin_harness import Harness
harness = Harness(pathlib.Path({str(library)!r}), pathlib.Path({str(tmp_path)!r}), shim=False)
launches, case, inputs, outputs = test_library._routing()
try:
    harness.run(launches.contract, inputs, case.attributes, outputs, 80)
except RuntimeError as error:
    print(error)
"""
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                            check=True, env=environment)  # fmt: skip
    assert "libcuda.so.1 cannot be loaded" in result.stdout
