"""Exported graphs in tools that are not ours."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper

from glm_trt.engines.bundle import Bundle
from glm_trt.engines.python.cut_session import EXPERTS, expert_model
from glm_trt.export.passes.nodes import every_node
from glm_trt.export.trace import trace_block
from glm_trt.model.config import ModelConfig
from glm_trt.model.presets import preset_config

NAMES = {"batch", "sequence", "capacity", "selected", "tokens"}


@pytest.fixture(scope="module")
def graphs(tiny_bundle: Path) -> dict[str, onnx.ModelProto]:
    """Every kind of the tiny bundle, and one with linear attention."""
    bundle = Bundle.open(tiny_bundle)
    found = {kind: onnx.load(bundle.graph_path(kind, "float32")) for kind in bundle.kinds}
    hybrid = ModelConfig.from_dict(preset_config("glm-5.1-hybrid", "tiny"))
    return found | {"sparse_linear": trace_block(hybrid, "sparse_linear", torch.float32)}


def test_axes_opset_and_constants(graphs: dict[str, onnx.ModelProto]) -> None:
    seen: set[str] = set()
    for kind, model in graphs.items():
        graph = model.graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            axes = [dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param]
            assert {axis.partition("_times_")[0] for axis in axes} <= NAMES, (kind, value.name)
            seen.update(axes)
        imports = (model.opset_import, *(body.opset_import for body in model.functions))
        opsets = {entry.version for of in imports for entry in of if not entry.domain}
        assert opsets == {27 if "linear" in kind else 24}
        for node in every_node(model):
            if node.op_type == "Constant":
                (attribute,) = node.attribute
                assert attribute.name == "value" or attribute.ref_attr_name
    assert seen >= NAMES


@pytest.mark.parametrize("operator", EXPERTS)
def test_a_graph_of_one_expert_declares_no_more(operator: str) -> None:
    model = expert_model(operator, helper.np_dtype_to_tensor_dtype(torch.zeros(1).numpy().dtype))
    assert max(entry.version for entry in model.opset_import if not entry.domain) <= 24
