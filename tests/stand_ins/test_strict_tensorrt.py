"""The stand-in for TensorRT: its rules, its names against the real module's, and the tiny bundle on
it from end to end. The same from C++: tests/engines/cpp/test_end_to_end.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from on_stand_ins import environment, glm_trt_on_stand_ins

HERE = Path(__file__).parent
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
RULES = {
    "in_threads": [],
    "keeps": [],
    "what_is_refused": [],
    "aliased_undeclared": [],
    "first_run_recorded": [],
    "no_memory": ["not-allocated"],
    "too_little_scratch": ["scratch"],
    "context_gone_too_early": ["destroyed-in-order"],
    "engine_before_context": ["destroyed-in-order"],
    "runtime_before_engine": ["destroyed-in-order"],
    "no_context": ["no-context"],
}


def python(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", *arguments], capture_output=True, text=True, check=False,
        env=environment() | settings,
    )  # fmt: skip


@pytest.mark.parametrize("module", FLAVOURS.values())
def test_rules(module: str) -> None:
    """Programs that keep them are told of nothing; each that breaks one is."""
    done = python(str(HERE / "tensorrt_programs.py"), module)
    assert done.returncode == 0, done.stderr[-3000:]
    specialised = {"tensorrt": [], "tensorrt_rtx": ["recorded-before-specialised"]}[module]
    assert json.loads(done.stdout) == RULES | {"recorded_before_specialised": specialised}


PARAMETERS = """
import inspect, json, re, sys
import {module} as trt
found = {{}}
for name, of in vars(trt).items():
    if isinstance(of, type) and not name.startswith("_"):
        found[name] = {{}}
        for member in dir(of):
            if not member.startswith("_") and not hasattr(int, member):
                it = inspect.getattr_static(of, member)
                text = it.__doc__ or "" if callable(it) else ""
                calls = re.findall(member + r"\\((.*?)\\) ->", text)
                bound = [re.findall(r"(\\w+): ", call) for call in calls]
                if not bound and inspect.isfunction(it):
                    bound = [list(inspect.signature(it).parameters)]
                found[name][member] = bound
json.dump(found, sys.stdout)
"""


def test_names_are_those_of_the_real_module() -> None:
    """Every class and member, and the names of parameters, are TensorRT-RTX's."""
    pytest.importorskip("tensorrt_rtx", reason="its module is asked")
    script = PARAMETERS.format(module="tensorrt_rtx")
    ours = python("-c", script)
    theirs = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert ours.returncode == 0, ours.stderr
    real, compared = json.loads(theirs.stdout), 0
    for name, members in json.loads(ours.stdout).items():
        assert name in real
        for member, overloads in members.items():
            assert member in real[name], f"{name}.{member}"
            for parameters in filter(None, overloads):
                known: list[Any] = real[name][member]
                assert any(parameters == x[: len(parameters)] for x in known), (
                    f"{name}.{member}{tuple(parameters)}: the real one has {known}"
                )
                compared += 1
    assert compared > 20


def test_what_one_flavour_has_alone() -> None:
    script = "import tensorrt as t; print(hasattr(t, 'ComputeCapability'), t.__version__)"
    assert python("-c", script).stdout == "False 11.4.0.106\n"


def tokens(done: subprocess.CompletedProcess[str]) -> list[int]:
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[int] = json.loads(done.stdout)["token_ids"]
    return found


@pytest.mark.parametrize("seeds", [1, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", FLAVOURS)
def test_the_same_tokens(float32_bundle: Path, backend: str, seeds: int) -> None:
    """Engines of standard operators; steps are recorded; in any order that streams allow."""
    prompt = ("run", str(float32_bundle), "--prompt", "def ", "--json")
    expected = tokens(glm_trt_on_stand_ins(*prompt))
    for seed in range(seeds):
        done = glm_trt_on_stand_ins(*prompt, "--backend", backend, STAND_IN_SEED=str(seed))
        assert tokens(done) == expected, seed
        assert "stand-in" not in done.stderr, seed


@pytest.mark.slow
@pytest.mark.parametrize("backend", FLAVOURS)
def test_validation(float32_bundle: Path, backend: str) -> None:
    done = glm_trt_on_stand_ins(
        "validate", str(float32_bundle), "--backend", backend, "--longest", "24"
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize(
    ("name", "count"),
    [("hybrid_bundle", 3), pytest.param("plugin_bundle", 12, marks=pytest.mark.slow)],
)
def test_the_same_tokens_with_plugins(
    name: str, count: int, library: Path, request: pytest.FixtureRequest
) -> None:
    """Each plugin enqueues its kernels, which the interpreter does when the stream gets there."""
    bundle: Path = request.getfixturevalue(name)
    prompt = ("run", str(bundle), "--input-ids", "5,6", "--max-new-tokens", str(count), "--json")
    expected = tokens(glm_trt_on_stand_ins(*prompt))
    done = glm_trt_on_stand_ins(
        *prompt, "--backend", "tensorrt-rtx", STAND_IN_KERNELS=str(library.parent / "kernels.json")
    )
    assert tokens(done) == expected


def test_a_plugin_belongs_to_one_registry(plugin_bundle: Path, library: Path) -> None:
    """A plan is loaded by the runtime that has its plugins, not by another beside it."""
    plan = plugin_bundle / "engines/tensorrt-rtx/sm80/float32/dense_indexed.plan"
    script = f"""
import tensorrt_rtx as trt
from glm_trt.engines.python.gpu import Gpu
gpu = Gpu("this program")
one, other = (trt.Runtime(trt.Logger(trt.Logger.ERROR)) for _ in range(2))
assert one.get_plugin_registry().load_library({str(library)!r})
plan = open({str(plan)!r}, "rb").read()
with gpu.current():
    assert other.deserialize_cuda_engine(plan) is None
    engine = one.deserialize_cuda_engine(plan)
    assert engine is not None
    del engine
gpu.close()
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert "Plugin not found, are the plugin name, version, and namespace correct?" in done.stderr


def test_marked_engines_find_their_plugins(plugin_bundle: Path, library: Path) -> None:
    """Bisect builds engines anew: they belong to the runtime that has the plugin library."""
    done = python(
        str(HERE / "marked_program.py"), str(plugin_bundle), "dense_indexed",
        STAND_IN_KERNELS=str(library.parent / "kernels.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
