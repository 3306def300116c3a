"""Foreign ONNX files with LinearAttention and CausalConvWithState, through the real parser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from glm_trt.engines.build.fill_absent_inputs import fill_absent_inputs
from glm_trt.engines.build.flavours import RTX_TARGETS, load_flavour

pytest.importorskip("tensorrt_rtx", reason="engines are built with tensorrt-rtx")

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16,
         "bfloat16": TensorProto.BFLOAT16}  # fmt: skip
# One process a build, as the parser ends it where something is missing.
BUILD = """
import json, sys
import tensorrt_rtx as trt
model, library, *targets = sys.argv[1:]
logger = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(logger)
if library != "-":
    builder.get_plugin_registry().load_library(library)
found = {}
for target in targets:
    flag = int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(1 << flag)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(model):
        sys.exit("refused: " + str(parser.get_error(0)))
    plugins = [network.get_layer(i) for i in range(network.num_layers)]
    plugins = [l for l in plugins if l.type == trt.LayerType.PLUGIN_V3]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[target.upper()], 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 in tuple(tensor.shape):
            sizes = [[n if d == -1 else d for d in tensor.shape] for n in (1, 16, 512)]
            profile.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    found[target] = [plan.nbytes if plan else 0, len(plugins), [
        str(network.get_output(i).dtype) + str(tuple(network.get_output(i).shape))
        for i in range(network.num_outputs)]]
print(json.dumps(found))
"""


def build(model: onnx.ModelProto, library: Path | None, directory: Path) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(dir=directory))
    path = directory / "foreign.onnx"
    onnx.save(model, path)
    found = subprocess.run(
        [sys.executable, "-c", BUILD, str(path), str(library or "-"), *RTX_TARGETS],
        capture_output=True, text=True, check=False,
        env=os.environ | load_flavour("tensorrt-rtx").environment(directory),
    )  # fmt: skip
    result = {} if found.returncode else json.loads(found.stdout.splitlines()[-1])
    if not result or not all(size for size, *_ in result.values()):
        raise RuntimeError(found.stderr)
    return result  # type: ignore[no-any-return]


def make_model(nodes: list[Any], values: dict[str, Any], outputs: dict[str, str]) -> Any:
    """`values`: name → (dtype, shape), an array for an initializer; `outputs`: name → dtype."""
    given = [
        helper.make_tensor_value_info(n, TYPES[v[0]], v[1])
        for n, v in values.items()
        if isinstance(v, tuple)
    ]
    constants = [
        onnx.numpy_helper.from_array(v, n) for n, v in values.items() if not isinstance(v, tuple)
    ]
    made = [helper.make_tensor_value_info(n, TYPES[t], None) for n, t in outputs.items()]
    return helper.make_model(
        helper.make_graph(nodes, "foreign", given, made, constants),
        opset_imports=[helper.make_opsetid("", 27)], ir_version=12,
    )  # fmt: skip


def attention(rule: str, dtype: str, state: str, decay: int, inputs: int, group: int = 1) -> Any:
    """A sequence of open length; heads of 16 × 24 (2 of them), `inputs` of the six given."""
    values = {
        "query": (dtype, [1, "length", 32 * group]), "key": (dtype, [1, "length", 32]),
        "value": (dtype, [1, "length", 48]), "past": (state, [1, 2, 16, 24]),
        "decay": (dtype, [1, "length", decay]), "beta": (dtype, [1, "length", 2]),
    }  # fmt: skip
    values = dict(list(values.items())[:inputs])
    node = helper.make_node(
        "LinearAttention", list(values), ["output", "present"], update_rule=rule,
        q_num_heads=2 * group, kv_num_heads=2, scale=0.3, chunk_size=32,
    )  # fmt: skip
    return make_model([node], values, {"output": dtype, "present": state})


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        (("gated_delta", "bfloat16", "float32", 2, 6), ("BF16(1, -1, 48)", "FLOAT(1, 2, 16, 24)")),
        (("gated_delta", "float16", "float16", 32, 6), ("HALF(1, -1, 48)", "HALF(1, 2, 16, 24)")),
        (("delta", "float32", "float32", 2, 6), ("FLOAT(1, -1, 48)", "FLOAT(1, 2, 16, 24)")),
        (("gated", "bfloat16", "bfloat16", 32, 5, 3), ("BF16(1, -1, 144)", "BF16(1, 2, 16, 24)")),
        (("linear", "float16", "float32", 2, 4), ("HALF(1, -1, 48)", "FLOAT(1, 2, 16, 24)")),
        (("linear", "float32", "float32", 2, 3), ("FLOAT(1, -1, 48)", "FLOAT(1, 2, 16, 24)")),
    ],
)
def test_linear_attention_builds(
    arguments: Any, shapes: tuple[str, str], library: Path, tmp_path: Path
) -> None:
    found = build(attention(*arguments), library, tmp_path)
    assert set(found) == set(RTX_TARGETS)
    for _, plugins, outputs in found.values():
        assert plugins == 1
        assert outputs == [f"DataType.{shape}" for shape in shapes]


@pytest.mark.parametrize("inputs", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_causal_convolution_builds(dtype: str, inputs: int, library: Path, tmp_path: Path) -> None:
    values = {"input": (dtype, [1, 40, "length"]), "weight": (dtype, [40, 1, 5]),
              "bias": (dtype, [40]), "past": (dtype, [1, 40, 4])}  # fmt: skip
    values = dict(list(values.items())[:inputs])
    activation = {} if inputs == 2 else {"activation": ("silu", "swish")[inputs % 2]}
    node = helper.make_node("CausalConvWithState", list(values), ["output", "present"],
                            **activation)  # fmt: skip
    model = make_model([node], values, {"output": dtype, "present": dtype})
    for _, plugins, outputs in build(model, library, tmp_path).values():
        assert plugins == 1
        kind = {"float32": "FLOAT", "bfloat16": "BF16"}[dtype]
        assert outputs == [f"DataType.{kind}(1, 40, -1)", f"DataType.{kind}(1, 40, 4)"]


def test_without_the_library_the_parser_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"LinearAttention|Plugin not found"):
        build(attention("gated_delta", "float32", "float32", 2, 6), None, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"update_rule": "quadratic"}, "expected one of linear, gated, delta, gated_delta; found"),
        ({"q_num_heads": 3}, "query heads"),
        ({"kv_num_heads": 5}, "contradict"),
        ({"kv_num_heads": 0}, "kv_num_heads must be positive"),
    ],
)
def test_wrong_attributes_are_said(
    change: dict[str, Any], message: str, library: Path, tmp_path: Path
) -> None:
    model = attention("gated_delta", "float32", "float32", 2, 6)
    node = model.graph.node[0]
    kept = [a for a in node.attribute if a.name not in change]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(*item) for item in change.items())])
    with pytest.raises(RuntimeError, match=message):
        build(model, library, tmp_path)


def random_feed(model: onnx.ModelProto, length: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    feed = {}
    for value in model.graph.input:
        shape = [d.dim_value or length for d in value.type.tensor_type.shape.dim]
        feed[value.name] = generator.standard_normal(shape).astype(np.float32) / 3
    return feed


def foreign_layer(state: bool) -> Any:
    """A layer as in nobody's model in particular: convolution without bias, then a delta rule."""
    values: dict[str, Any] = {
        "x": ("float32", [1, 32, "length"]), "beta": ("float32", [1, "length", 2]),
        "weight": np.random.default_rng(1).standard_normal((32, 1, 4)).astype(np.float32),
        "columns": ("float32", [1, 32, 3]),
    }  # fmt: skip
    if state:
        values["past"] = ("float32", [1, 2, 16, 16])
    nodes = [
        helper.make_node("CausalConvWithState", ["x", "weight", "", "columns"],
                         ["y", "new_columns"], activation="silu"),
        helper.make_node("Transpose", ["y"], ["z"], perm=[0, 2, 1]),
        helper.make_node("LinearAttention", ["z", "z", "z", "past" if state else "", "", "beta"],
                         ["output", "present"], update_rule="delta", q_num_heads=2, kv_num_heads=2),
    ]  # fmt: skip
    return make_model(
        nodes, values, {"output": "float32", "present": "float32", "new_columns": "float32"}
    )


@pytest.mark.parametrize("state", [True, False])
def test_absent_inputs_are_filled(state: bool, library: Path, tmp_path: Path) -> None:
    model = foreign_layer(state)
    filled = fill_absent_inputs(model)
    assert fill_absent_inputs(filled) == filled
    onnx.shape_inference.infer_shapes(filled, strict_mode=True)
    for length in (1, 9):
        feed = random_feed(model, length)
        before, after = (
            onnxruntime.InferenceSession(m.SerializeToString()).run(None, feed)
            for m in (model, filled)
        )
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(RuntimeError, match="refused"):
        build(model, library, tmp_path)
    assert all(plugins == 2 for _, plugins, _ in build(filled, library, tmp_path).values())
