"""An operator is found by its folder: everywhere that operators are, and without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_operator import use_in_model, walk, write_toy

from glm_trt.plugins.common.selection import Selection
from glm_trt.plugins.folders import CONTRACTS
from glm_trt.plugins.library import build_key

ROOT = Path(__file__).parent.parent.parent
WITHOUT = ROOT / "tests" / "support" / "without.py"
# A process in which the folder of operators is two.
BEGIN = "import sys, glm_trt.plugins; glm_trt.plugins.__path__.append(sys.argv[1])\n"
# And files of the model come from another place first.
OTHER_MODEL = "import glm_trt.model; glm_trt.model.__path__.insert(0, sys.argv[4])\n"
FOUND = """
import json
from pathlib import Path
import onnx.defs, onnxruntime, torch
from onnx import helper, numpy_helper
from glm_trt.engines.build.graph import prepare_graph
from glm_trt.engines.planning.memory import plugin_bytes
from glm_trt.export.operators import translations
from glm_trt.model.config import ModelConfig
from glm_trt.model.checkpoint.presets import preset_config
from glm_trt.plugins.bodies import function_bodies
from glm_trt.plugins.build import load_launches
from glm_trt.plugins.common.codegen import KernelTable, operators_cpp
from glm_trt.plugins.common.documentation import operators_markdown
from glm_trt.plugins.folders import CONTRACTS, part_of
from glm_trt.plugins.common.selection import Selection
from glm_trt.plugins.library import build_key
from glm_trt.plugins.operators import RegisteredOperators
from glm_trt.validate.running.graph_evaluator import GraphEvaluator

case = part_of("toy_add", "cases").CASES[0]
inputs = case.make(torch.Generator().manual_seed(0), torch.float32)
x, other = inputs
expected = x + 0.5 * other
assert torch.equal(torch.ops.glm_trt.toy_add(x, other, scale=0.5), expected)
assert torch.equal(RegisteredOperators().toy_add(x, other, scale=0.5), expected)
assert torch.ops.glm_trt.toy_add.default in translations()
schema = onnx.defs.get_schema("ToyAdd", 1, "glm_trt")
assert [port.name for port in schema.inputs] == ["x", "other"]

node = helper.make_node("ToyAdd", ["x", "other"], ["y"], domain="glm_trt", scale=0.5)
values = [helper.make_tensor_value_info(n, 1, [3, 67]) for n in ("x", "other", "y")]
graph = helper.make_graph([node], "toy", values[:2], values[2:])
model = helper.make_model(graph, functions=[function_bodies()["ToyAdd"]], ir_version=10,
    opset_imports=[helper.make_opsetid("", 24), helper.make_opsetid("glm_trt", 1)])
session = onnxruntime.InferenceSession(model.SerializeToString())
(found,) = session.run(None, {"x": x.numpy(), "other": other.numpy()})
assert (torch.from_numpy(found) - expected).norm() <= 1e-6 * expected.norm()
double = GraphEvaluator(model, exact=True).run({"x": x.double(), "other": other.double()})["y"]
assert double.dtype == torch.float64 and torch.equal(double, x.double() + 0.5 * other.double())
onnx.save(model, sys.argv[2] + "/toy.onnx")
assert prepare_graph(Path(sys.argv[2]) / "toy.onnx", {}, True).plugins == ("ToyAdd",)
selection = Selection(("sm80",), ())
source = operators_cpp(load_launches(), KernelTable({}), "1", selection)
assert "toy_add_index" in source and "at least one column" in source
assert build_key(selection) != sys.argv[3]
assert "## ToyAdd" in operators_markdown(CONTRACTS.values())
config = ModelConfig.from_dict(preset_config("glm-5.1", "full"))
assert plugin_bytes(config, 4096, 1)["toy_add"] == 0
print(json.dumps(sorted(CONTRACTS)))
"""
IN_A_MODEL = """
import importlib.util
from glm_trt.engines.build.engines import BUILDER_OPTIONS
from glm_trt.engines.build.flavours import load_flavour
from glm_trt.engines.build.worker import build
from glm_trt.export.trace import trace_block
from glm_trt.model.checkpoint.weights import empty_block, fill_block
from glm_trt.model.glm_moe_dsa import run_block
from glm_trt.model.operators import EagerOperators
from glm_trt.validate.running.subjects import KernelOperators

config = ModelConfig.from_dict(preset_config("glm-5.1", "tiny", layers=1, with_mtp=False))
model = trace_block(config, "dense_indexed", torch.float32)
assert [node.op_type for node in model.graph.node].count("ToyAdd") == 1
generator = torch.Generator().manual_seed(0)
sizes = {"batch": 1, "sequence": 3, "capacity": 8}
given = {}
for port in model.graph.input:
    of = port.type.tensor_type
    shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in of.shape.dim]
    given[port.name] = torch.randn(shape, generator=generator) if of.elem_type == 1 else (
        torch.full(shape, 4))
# The eager model, which knows no plugin, is the measure of the rest.
block = empty_block(config, 0, absorbed=True)
names = {name for name, _ in block.named_parameters()}
fill_block(block, {name: given[name] for name in names})
inputs = {name: value for name, value in given.items() if name not in names}
expected = run_block(block, inputs)["hidden_out"]
operators = EagerOperators()
kernel, calls = KernelOperators().toy_add, []
operators.toy_add = lambda *given, **scale: calls.append(scale) or kernel(*given, **scale)
found = [GraphEvaluator(model, operators).run(given)["hidden_out"]]
assert calls == [{"scale": 1.0}]
session = onnxruntime.InferenceSession(model.SerializeToString())
fed = {name: value.numpy() for name, value in given.items()}
found.append(torch.from_numpy(session.run(["hidden_out"], fed)[0]))
for y in found:
    assert (y - expected).norm() <= 1e-5 * expected.norm()
if importlib.util.find_spec("tensorrt_rtx"):
    onnx.save(model, sys.argv[2] + "/block.onnx")
    profile = {"batch": [1, 1, 1], "sequence": [1, 1, 8], "capacity": [8, 8, 8]}
    built = build(load_flavour("tensorrt-rtx"), {
        "target": "sm89", "graph": sys.argv[2] + "/block.onnx", "profiles": {"decode": profile},
        "options": BUILDER_OPTIONS, "plugins": None, "embed": False})
    assert built is not None and len(built[0]) > 10_000
"""
BUILT = """
from pathlib import Path
from glm_trt.plugins.build import build_library
from glm_trt.plugins.common.selection import Selection, TensorRange, Use

taken = TensorRange("float32", ((3, 3), (67, 67)))
use = Use("ToyAdd", (taken, taken), ())
print(build_library(Path(sys.argv[2]), Selection(("sm80",), (use,)), quiet=True))
"""
RUN = """
from pathlib import Path
import torch
from plugin_harness import Harness
from glm_trt.plugins.folders import CONTRACTS, part_of

harness = Harness(Path(sys.argv[2]), Path(sys.argv[3]))
case = part_of("toy_add", "cases").CASES[0]
inputs = case.make(torch.Generator().manual_seed(0), torch.float32)
found = [torch.full((3, 67), float("nan"))]
harness.run(CONTRACTS["toy_add"], inputs, case.attributes, found, 80)
expected = part_of("toy_add", "reference").reference(*inputs, **case.attributes)
assert (found[0] - expected).norm() <= 1e-6 * expected.norm()
print([launch.kernel for launch in harness.launches])
"""


def python(code: str, *arguments: object, interpreted: bool = True) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpreted else {}
    support = [ROOT, *(ROOT / "tests" / of for of in ("support", "plugins", "stand_ins"))]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, support))
    command = [sys.executable, "-P", "-c", BEGIN + code, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_folder_is_all_that_an_operator_needs(tmp_path: Path) -> None:
    """torch's operators, the model's, ONNX's schemas, function bodies, what graphs are read by, the
    tables, the plan, the generated C++ and what libraries are made of. Then, as CONTRIBUTING.md
    goes on, a block of a model that calls it: traced, run by its kernel and by its body, and built.
    """
    write_toy(tmp_path / "operators")
    use_in_model(tmp_path)
    key = build_key(Selection(("sm80",), ()))
    code = OTHER_MODEL + FOUND + IN_A_MODEL
    said = python(code, tmp_path / "operators", tmp_path, key, tmp_path / "model")
    found = json.loads(said.splitlines()[0])  # TensorRT says more
    assert found == sorted([*CONTRACTS, "toy_add"])


@pytest.mark.slow
def test_the_library_holds_an_operator_by_its_folder(tmp_path: Path) -> None:
    """Compiled, linked, and run on the stand-in for the driver."""
    write_toy(tmp_path / "operators")
    library = python(
        BUILT, tmp_path / "operators", ROOT / "build" / "plugins", interpreted=False
    ).strip()
    assert python(RUN, tmp_path / "operators", ROOT / library, tmp_path) == "['toy_add']\n"


@pytest.mark.slow
def test_the_commands_of_the_walk(tmp_path: Path) -> None:
    """Those of CONTRIBUTING.md, in a copy of the tree: from a checkpoint to engines with the plugin
    in them, and two validations that pass.
    """
    pytest.importorskip("tensorrt_rtx", reason="engines are built with tensorrt-rtx")
    for folder in ("model", "plugins", "export", "engines", "validate", "glm_trt"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    write_toy(tmp_path / "plugins")
    use_in_model(tmp_path)
    kernels = ROOT / "build" / "plugins"  # by content, so that those that are there are taken
    kernels.mkdir(parents=True, exist_ok=True)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "plugins").symlink_to(kernels)
    programs = Path(sys.executable).parent
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"}
    for line in walk():
        command = line.split()
        if command[0] == "make":  # this environment is set up
            command[1:1] = ["-o", "setup", f"BIN={programs}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path,
                              env=environment)  # fmt: skip
        assert done.returncode == 0, (line, done.stdout, done.stderr[-3000:])
    manifest = json.loads((tmp_path / "build" / "toy" / "manifest.json").read_text())
    plugins = {engine["kind"]: engine["plugins"] for engine in manifest["engines"]}
    assert plugins["dense_indexed"] == ["IndexerTopK", "SparseMla", "ToyAdd"]


@pytest.mark.parametrize(
    ("module", "name", "without", "error"),
    [
        ("folders", "toy_add", ("contract",), "plugins/toy_add: expected contract.py, found none"),
        ("operators", "toy_add", ("reference",), "plugins/toy_add: expected reference.py, found "
         "none"),
        ("folders", "other", (), "plugins/other/contract.py: torch_name: expected the folder's "
         "name, found toy_add"),
    ],
)  # fmt: skip
def test_an_incomplete_folder_is_named(
    tmp_path: Path, module: str, name: str, without: tuple[str, ...], error: str
) -> None:
    write_toy(tmp_path, without, name)
    code = f"""
from glm_trt.model.errors import GlmTrtError
try:
    import glm_trt.plugins.{module}
except GlmTrtError as error:
    assert str(error) == {error!r}, error
else:
    raise AssertionError("nothing was refused")
"""
    python(code, tmp_path)


def test_what_a_runtime_needs_of_an_operator_loads_no_torch() -> None:
    code = """
from importlib import import_module
from pkgutil import iter_modules
import glm_trt.plugins
from glm_trt.plugins.folders import CONTRACTS, has_part
from glm_trt.plugins.bodies import body_of

parts = ("contract", "launch", "cost", "rewrite", "absent_inputs")
loaded = [
    import_module(f"glm_trt.plugins.{name}.{part}")
    for name in CONTRACTS
    for part in parts
    if has_part(name, part)
]
assert len(loaded) >= 2 * len(CONTRACTS)
for contract in CONTRACTS.values():
    if linear := getattr(contract.form, "linear", ""):
        assert body_of(linear).name == CONTRACTS[linear].name
"""
    command = [sys.executable, "-P", str(WITHOUT), "torch,triton,onnxscript,onnx_ir", "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
