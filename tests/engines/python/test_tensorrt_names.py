"""All that our Python asks of TensorRT is there, in both flavours, with as many parameters.

TensorRT-RTX is installed. Of TensorRT 11 the bindings alone are: libraries that have the few C
functions that they link with, and answer nothing, are enough to import them. No object can be made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from glm_trt.engines.python.tensorrt_engine import Engine

ROOT = Path(__file__).parents[3]
SOURCES = ("engines/build/worker.py", "engines/build/flavours.py",
           "engines/python/tensorrt_engine.py")  # fmt: skip
# What the sources call an object, and its class.
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
    "config": "IBuilderConfig", "profile": "IOptimizationProfile", "engine": "ICudaEngine",
    "_engine": "ICudaEngine", "runtime": "Runtime", "_runtime": "Runtime",
    "context": "IExecutionContext", "_context": "IExecutionContext", "trt": "", "_trt": "",
}  # fmt: skip
# Asked only where the flavour builds ahead of time.
RTX_ALONE = {"ComputeCapability", "IBuilderConfig.num_compute_capabilities",
             "IBuilderConfig.set_compute_capability"}  # fmt: skip
# Of our own objects that have the same names: an `Engine`, a profile's ranges.
OUR_OWN = {f"ICudaEngine.{name}" for name in {*vars(Engine), *Engine.__annotations__}} | {
    "IOptimizationProfile.items"
}
LINKED = ("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL",
          "createInferRuntime_INTERNAL", "createNvOnnxParserRefitter_INTERNAL",
          "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry", "getNvOnnxParserVersion",
          "getPluginRegistry", "initLibNvInferPlugins")  # fmt: skip
LOOK = '''
import ast, importlib, json, re, sys
module, classes, sources = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
trt = importlib.import_module(module)

def parts(node):
    """The names of trt.A.B or config.c, by the class of what stands first; None of other things."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        names.append(node.id)
    names.reverse()
    for i, name in enumerate(names[:-1]):
        if name in classes:
            return [x for x in (classes[name], names[i + 1]) if x] + (
                names[i + 2 :] if not classes[name] else [])

def parameters(of):
    """How many positional arguments a function takes, by its documentation; None if it is not
    said there once."""
    found = re.match(r"\\w+\\((.*)\\) -> ", (of.__doc__ or "").strip())
    if not found or "*args" in found[1]:
        return None
    names = [x.strip() for x in re.split(r",(?![^\\[]*\\])", found[1])]
    required = [x for x in names if "=" not in x]
    return len(required) - ("self" in names[0]), len(names) - ("self" in names[0])

asked, missing, calls = set(), [], {}
for source in sources:
    for node in ast.walk(ast.parse(open(source).read())):
        call = node if isinstance(node, ast.Call) else None
        names = parts(call.func if call else node)
        if not names:
            continue
        names = [x for x in names if x != "__members__"]
        of = trt
        for i, name in enumerate(names):
            of = getattr(of, name, None)
            if of is None:
                missing.append(".".join(names[: i + 1]))
                break
        asked.add(".".join(names))
        if call and of is not None and not isinstance(of, type):
            if not any(isinstance(x, ast.Starred) for x in call.args) and not call.keywords:
                limits = parameters(of)
                if limits:
                    calls[".".join(names)] = [len(call.args), *limits]
print(json.dumps({"version": trt.__version__, "asked": sorted(asked), "missing": sorted(set(missing)),
                  "calls": calls}))
'''  # noqa: E501  (a script)


def look(module: str, **variables: str) -> dict[str, Any]:
    command = [sys.executable, "-c", LOOK, module, json.dumps(CLASSES)]
    done = subprocess.run(
        [*command, *(str(ROOT / source) for source in SOURCES)],
        capture_output=True, text=True, check=False, env=os.environ | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_calls(found: dict[str, Any]) -> None:
    assert len(found["asked"]) > 35
    assert len(found["calls"]) > 12
    for name, (given, least, most) in found["calls"].items():
        assert least <= given <= most, f"{name} takes {least} to {most}, is given {given}"


def test_tensorrt_rtx() -> None:
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    found = look("tensorrt_rtx")
    assert {*found["missing"]} <= OUR_OWN
    check_calls(found)


def test_tensorrt_11(tmp_path: Path) -> None:
    if find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    source = tmp_path / "nothing.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in LINKED))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = f"lib{name}.so.11"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", source, f"-Wl,-soname,{library}", "-o", tmp_path / library],
            check=True,
        )  # fmt: skip
    found = look("tensorrt_bindings", LD_LIBRARY_PATH=str(tmp_path))
    assert found["version"].startswith("11.")
    assert {*found["missing"]} - OUR_OWN == RTX_ALONE
    check_calls(found)
