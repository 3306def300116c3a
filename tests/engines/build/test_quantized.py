"""Engines of the FP8 and NVFP4 operators at GLM-5.1's dimensions: bytes are bound as INT8."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from glm_trt.engines.build.engines import BUILDER_OPTIONS, WORKER
from glm_trt.engines.build.flavours import RTX_TARGETS, load_flavour
from glm_trt.plugins.common.onnx_text import OPSET
from glm_trt.plugins.folders import CONTRACTS

pytest.importorskip("tensorrt_rtx", reason="engines are built with tensorrt-rtx")

HIDDEN, INNER, EXPERTS = 6144, 2048, 256
ROUTED = [[64, HIDDEN], [64, 8], [64, 8]]
SHAPES = {
    "fp8_linear": [[64, HIDDEN], [576, HIDDEN], [5, 48], [64, 576]],
    "nvfp4_linear": [[64, HIDDEN], [576, HIDDEN // 2], [576, HIDDEN // 16], [1], [64, 576]],
    "fp8_moe_experts": [
        *ROUTED, [EXPERTS, 2 * INNER, HIDDEN], [EXPERTS, 2, 16, 48], [EXPERTS, HIDDEN, INNER],
        [EXPERTS, 48, 16], [64, HIDDEN],
    ],
    "nvfp4_moe_experts": [
        *ROUTED, [EXPERTS, 2 * INNER, HIDDEN // 2], [EXPERTS, 2 * INNER, HIDDEN // 16],
        [EXPERTS, 2], [EXPERTS, HIDDEN, INNER // 2], [EXPERTS, HIDDEN, INNER // 16], [EXPERTS],
        [64, HIDDEN],
    ],
}  # fmt: skip
TYPES = {"int8": TensorProto.INT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT,
         "T": TensorProto.BFLOAT16}  # fmt: skip


# FP8 bytes on a target that has no such type, and on one that has.
@pytest.mark.parametrize(
    "target", [RTX_TARGETS[0], pytest.param(RTX_TARGETS[-1], marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", SHAPES)
def test_plugins_take_bytes(library: Path, tmp_path: Path, name: str, target: str) -> None:
    contract = CONTRACTS[name]
    values = [
        helper.make_tensor_value_info(port.name, TYPES[port.dtype], shape)
        for port, shape in zip(contract.ports, SHAPES[name], strict=True)
    ]
    attributes = {"quantize_activations": 1} if contract.attributes else {}
    node = helper.make_node(contract.name, [port.name for port in contract.inputs], ["y"],
                            domain="glm_trt", **attributes)  # fmt: skip
    graph = helper.make_graph([node], "g", values[:-1], values[-1:])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("glm_trt", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    plan = tmp_path / "engine.plan"
    request = {
        "backend": "tensorrt-rtx", "target": target, "graph": str(tmp_path / "graph.onnx"),
        "plan": str(plan), "profiles": {"decode": {}}, "options": BUILDER_OPTIONS,
        "plugins": str(library), "embed": False,
    }  # fmt: skip
    environment = os.environ | load_flavour("tensorrt-rtx").environment(tmp_path)
    done = subprocess.run(WORKER, input=json.dumps(request), capture_output=True, text=True,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert contract.name.encode() in plan.read_bytes()
    assert plan.stat().st_size < 1e6
