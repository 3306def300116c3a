"""Engines with the plugin library: real parser, real builder, for every target."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from traces import trace_once

from glm_trt.cli import main
from glm_trt.engines.build.engines import (
    BUILDER_OPTIONS,
    WORKER,
    BuildOptions,
    build_engines,
    build_marked,
    make_profiles,
)
from glm_trt.engines.build.flavours import RTX_TARGETS, load_flavour
from glm_trt.engines.build.graph import prepare_graph
from glm_trt.export.bundle.format import LIBRARY_PLACE
from glm_trt.export.bundle.read import read_manifest, verify_files
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.generate import CheckpointOptions, make_checkpoint
from glm_trt.model.checkpoint.presets import preset_config
from glm_trt.model.config import ModelConfig
from glm_trt.plugins.bodies import function_bodies
from glm_trt.plugins.common.onnx_text import OPSET
from glm_trt.plugins.folders import CONTRACTS

pytest.importorskip("tensorrt_rtx", reason="engines are built with tensorrt-rtx")

TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"
OPERATORS = {"MoeRouting", "MoeExperts", "IndexerTopK", "SparseMla"}  # of GLM-5.1's blocks


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plugins") / "bundle"
    export_checkpoint(TINY, place, ExportOptions(dtypes=("bfloat16", "float16")))
    return place


def library_for(targets: tuple[str, ...], request: pytest.FixtureRequest) -> Path:
    """One that has kernels for all of them: engines are refused without their kernels."""
    name = "whole_library" if targets == RTX_TARGETS else "library"
    found: Path = request.getfixturevalue(name)
    return found


@pytest.mark.parametrize(
    ("dtype", "targets"),
    [
        ("bfloat16", ("sm80", "sm86")),
        pytest.param("bfloat16", RTX_TARGETS, marks=pytest.mark.slow),
        pytest.param("float16", RTX_TARGETS, marks=pytest.mark.slow),
    ],
)
def test_every_kind_builds_with_plugins(
    bundle: Path, request: pytest.FixtureRequest, dtype: str, targets: tuple[str, ...]
) -> None:
    library = library_for(targets, request)
    options = BuildOptions(targets=targets, dtype=dtype, plugins=library)
    engines = [engine.entry for engine in build_engines(bundle, options)]
    assert len(engines) == 5 * len(targets)
    for engine in engines:
        wanted = {
            "dense_indexed": {"IndexerTopK", "SparseMla"},
            "sparse_indexed": OPERATORS,
            "mtp_sparse_indexed": OPERATORS,
        }.get(engine.kind, set())
        assert set(engine.plugins) == wanted
        assert engine.bytes < 10e6
        assert transposed_weights(bundle / engine.file) == []
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest.files)
    assert LIBRARY_PLACE in manifest.files
    assert all(engine.cached for engine in build_engines(bundle, options))


def test_inner_values_become_outputs(bundle: Path, library: Path, tmp_path: Path) -> None:
    """The engine of a kind once more, for bisecting; a shape among the values is passed over."""
    options = BuildOptions(targets=("sm80",), dtype="bfloat16", plugins=library)
    entry = next(
        engine.entry for engine in build_engines(bundle, options)
        if engine.entry.kind == "sparse_indexed"
    )  # fmt: skip
    graph = onnx.load(bundle / "graphs" / "bfloat16" / "sparse_indexed.onnx").graph
    makers = {node.op_type: node.output[0] for node in graph.node}
    names = [makers["RMSNormalization"], makers["MoeExperts"]]
    marked = build_marked(bundle, entry, [*names, makers["Shape"], "none"], tmp_path).read_bytes()
    plain = (bundle / entry.file).read_bytes()
    network = _network_outputs(tmp_path / "marked.onnx")
    assert network[-2:] == names and makers["Shape"] not in network
    # The names of inputs and outputs are in a plan as they are.
    for name in (*names, "hidden_out"):
        assert name.encode() in marked
    assert len(marked) != len(plain)


def _network_outputs(path: Path) -> list[str]:
    return [value.name for value in onnx.load(path).graph.output]


def test_another_library_makes_engines_anew(bundle: Path, library: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    first = BuildOptions(targets=("sm80",), dtype="bfloat16", plugins=library)
    build_engines(copy, first)
    other = tmp_path / library.name
    other.write_bytes(library.read_bytes() + b"\0")
    engines = build_engines(copy, BuildOptions(targets=("sm80",), dtype="bfloat16", plugins=other))
    assert not any(engine.cached for engine in engines)
    left = {engine.plugin_library for engine in read_manifest(copy).engines}
    assert left == {engines[0].entry.plugin_library}


def test_embedding_carries_the_library(bundle: Path, library: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    options = BuildOptions(targets=("sm80",), dtype="bfloat16", plugins=library, embed_plugins=True)
    sizes = {e.entry.kind: e.entry.bytes for e in build_engines(copy, options)}
    assert sizes["sparse_indexed"] > library.stat().st_size


def test_missing_library_is_said(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", str(bundle), "--target", "sm89"]
    assert main([*arguments, "--plugins", str(tmp_path / "none.so")]) == 3
    assert "none.so: build it (make plugins)" in capsys.readouterr().err
    (tmp_path / "text.so").write_text("not a library")
    assert main([*arguments, "--plugins", str(tmp_path / "text.so")]) == 2
    assert "not a plugin library" in capsys.readouterr().err


def test_plain_process_parses_the_stripped_graph(
    bundle: Path, library: Path, tmp_path: Path
) -> None:
    graph = bundle / "graphs" / "bfloat16" / "sparse_indexed.onnx"
    prepared = prepare_graph(graph, {"batch": 1, "sequence": 4, "capacity": 128}, True)
    (tmp_path / "graph.onnx").write_bytes(prepared.model)
    script = f"""
import json, sys
import tensorrt_rtx as trt
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
registry = builder.get_plugin_registry()
registry.load_library({str(library)!r})
creators = [c.name for c in registry.all_creators if c.plugin_namespace == "glm_trt"]
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, builder.logger)
parsed = parser.parse(open({str(tmp_path / "graph.onnx")!r}, "rb").read())
types = [network.get_layer(i).type for i in range(network.num_layers)]
loaded = [name for name in sys.modules if name.startswith(("glm_trt", "torch"))]
print(json.dumps([creators, parsed, types.count(trt.LayerType.PLUGIN_V3), loaded]))
"""
    environment = os.environ | load_flavour("tensorrt-rtx").environment(tmp_path)
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True,
                            text=True, check=True)  # fmt: skip
    creators, parsed, layers, loaded = json.loads(result.stdout)
    ours = {contract.name for contract in CONTRACTS.values() if contract.domain == "glm_trt"}
    assert set(creators) == ours
    assert parsed
    assert layers == len(prepared.plugins) == 4
    assert loaded == []


@pytest.mark.parametrize(
    ("preset", "kind"),
    [
        ("glm-5.1", "dense_indexed"), ("glm-5.1", "sparse_indexed"),
        ("glm-5.1-hybrid", "dense_linear"), ("glm-5.1-hybrid", "sparse_linear"),
        ("glm-5.1-hybrid", "sparse_full"),
        *(pytest.param("glm-5.2", kind, marks=pytest.mark.slow)
          for kind in ("dense_indexed", "sparse_shared", "sparse_indexed", "mtp_sparse_indexed")),
    ],
)  # fmt: skip
def test_real_dimensions(library: Path, tmp_path: Path, preset: str, kind: str) -> None:
    """The presets' own sizes and context, weights as inputs: seconds and megabytes, not hours."""
    config = ModelConfig.from_dict(preset_config(preset, "block"), preset)
    graph, plan = tmp_path / "graph.onnx", tmp_path / "engine.plan"
    graph.write_bytes(trace_once(config, kind, torch.bfloat16).SerializeToString())
    result = build_one(
        graph, plan, make_profiles(config.max_position_embeddings, 512, 2048), library
    )
    assert plan.stat().st_size < 10e6
    assert result["peak_memory_bytes"] < 4e9
    assert transposed_weights(plan) == []


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hybrid")
    make_checkpoint(CheckpointOptions("glm-5.1-hybrid"), place / "checkpoint")
    export_checkpoint(place / "checkpoint", place / "bundle", ExportOptions(dtypes=("bfloat16",)))
    return place / "bundle"


@pytest.mark.parametrize("targets", [("sm80",), pytest.param(RTX_TARGETS, marks=pytest.mark.slow)])
def test_hybrid_builds_with_plugins(
    hybrid: Path, request: pytest.FixtureRequest, targets: tuple[str, ...]
) -> None:
    library = library_for(targets, request)
    options = BuildOptions(targets=targets, dtype="bfloat16", plugins=library)
    linear = {"LinearAttention", "CausalConvWithState"}
    wanted = {
        "dense_linear": linear,
        "sparse_linear": linear | {"MoeRouting", "MoeExperts"},
        "sparse_full": {"CausalMla", "MoeRouting", "MoeExperts"},
    }
    wanted["mtp_sparse_full"] = wanted["sparse_full"]
    engines = [engine.entry for engine in build_engines(hybrid, options)]
    assert len(engines) == 6 * len(targets)
    for engine in engines:
        assert set(engine.plugins) == wanted.get(engine.kind, set())
        assert transposed_weights(hybrid / engine.file) == []


@pytest.mark.parametrize(
    ("name", "linear", "experts"),
    [
        ("nvfp4-default", {"Nvfp4Linear"}, "Nvfp4MoeExperts"),
        pytest.param("mixed-precision", {"Fp8Linear"}, "Nvfp4MoeExperts", marks=pytest.mark.slow),
        pytest.param("nvfp4-mlp-only", {"Nvfp4Linear"}, "Nvfp4MoeExperts", marks=pytest.mark.slow),
        pytest.param("nvfp4-experts-only", set(), "Nvfp4MoeExperts", marks=pytest.mark.slow),
        pytest.param("fp8-by-tensor", {"Fp8Linear"}, "Fp8MoeExperts", marks=pytest.mark.slow),
    ],
)
def test_what_others_quantised_builds_with_plugins(
    library: Path, tmp_path: Path, name: str, linear: set[str], experts: str
) -> None:
    """Narrow layers are plugins, and so are the indexer's head weights where they are narrow."""
    options = ExportOptions(dtypes=("bfloat16",))
    export_checkpoint(TINY.parent / "quantised" / name, tmp_path / "bundle", options)
    built = BuildOptions(targets=("sm80",), dtype="bfloat16", plugins=library)
    engines = [engine.entry for engine in build_engines(tmp_path / "bundle", built)]
    assert len(engines) == 4
    for engine in engines:
        sparse = engine.kind.startswith("sparse")
        wanted = {"IndexerTopK", "SparseMla"} | (linear if engine.kind.count("_") > 1 else set())
        wanted |= {"MoeRouting", experts} if sparse else set()
        assert set(engine.plugins) == (wanted if "_" in engine.kind else set())


def test_linear_attention_wants_the_library(
    hybrid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(hybrid, tmp_path / "bundle"))
    assert main(["build", str(copy), "--target", "sm89", "--no-plugins"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"TensorRT has (LinearAttention|CausalConvWithState) as a plugin alone", said)
    assert "Traceback" not in said


def test_a_transposed_weight_is_seen(tmp_path: Path) -> None:
    """The control of the tests above: the form of graph that TensorRT does transpose."""
    nodes = [
        helper.make_node("Sigmoid", ["hidden"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["b", "k_up_proj"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[1, 0, 2]),
        helper.make_node("Sigmoid", ["d"], ["y"]),
    ]
    sizes = {"hidden": [1, 64, 192], "k_up_proj": [64, 192, 512], "y": [1, 64, 512]}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.BFLOAT16, size)
        for name, size in sizes.items()
    }
    graph = helper.make_graph(nodes, "g", [values["hidden"], values["k_up_proj"]], [values["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    plan = tmp_path / "engine.plan"
    build_one(tmp_path / "graph.onnx", plan, {"decode": {}}, None)
    assert transposed_weights(plan) != []


@pytest.mark.parametrize(
    "dtype", [TensorProto.BFLOAT16, pytest.param(TensorProto.FLOAT16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "body"])
def test_causal_attention_builds(library: Path, tmp_path: Path, plugin: bool, dtype: int) -> None:
    """Which no block of GLM-5.1 has: as a plugin, and as the function body alone."""
    sizes = {"query": [1, 3, 64, 576], "cache": [1, 1, 2048, 576], "latent": [1, 3, 64, 512]}
    values = {name: helper.make_tensor_value_info(name, dtype, s) for name, s in sizes.items()}
    past = helper.make_tensor_value_info("past_lengths", TensorProto.INT64, [1])
    node = helper.make_node("CausalMla", ["query", "cache", "past_lengths"], ["latent"],
                            domain="glm_trt", scale=0.0625, value_width=512)  # fmt: skip
    graph = helper.make_graph([node], "g", [values["query"], values["cache"], past],
                              [values["latent"]])  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("glm_trt", 1)]
    model = helper.make_model(graph, functions=[function_bodies()["CausalMla"]],
                              opset_imports=opsets, ir_version=11)  # fmt: skip
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    prepared = prepare_graph(tmp_path / "graph.onnx", {}, plugin)
    assert prepared.plugins == (("CausalMla",) if plugin else ())
    ready, plan = tmp_path / "ready.onnx", tmp_path / "engine.plan"
    ready.write_bytes(prepared.model)
    build_one(ready, plan, {"decode": {}}, library if plugin else None)
    assert (b"CausalMla" in plan.read_bytes()) == plugin


def build_one(graph: Path, plan: Path, profiles: Any, library: Path | None) -> dict[str, Any]:
    """An engine by the worker alone."""
    request = {
        "backend": "tensorrt-rtx", "target": "sm89", "graph": str(graph), "plan": str(plan),
        "profiles": profiles, "options": BUILDER_OPTIONS,
        "plugins": None if library is None else str(library), "embed": False,
    }  # fmt: skip
    environment = os.environ | load_flavour("tensorrt-rtx").environment(plan.parent)
    done = subprocess.run(WORKER, input=json.dumps(request), capture_output=True, text=True,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def transposed_weights(plan: Path) -> list[str]:
    """Kernels of the plan that transpose a matrix of weights, alone or among other work.

    TensorRT's generated kernels say in their names what they do, and list what they read.
    """
    text = plan.read_bytes().decode("latin-1")
    kernels = re.findall(r"function=\{ name=(__myl_\w*Tran\w*) .*?args=\{(.*?)\}", text)
    return [
        f"{name}: {argument}"
        for name, arguments in kernels
        for argument in arguments.split()
        if re.search(r"weight|proj", argument) and "norm" not in argument
    ]
