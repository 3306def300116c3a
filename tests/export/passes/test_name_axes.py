"""Names of axes, on graphs of a node or two."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from glm_trt.export.passes.name_axes import name_axes

FLOAT = TensorProto.FLOAT
AXES = {"x": {0: "batch", 1: "sequence"}, "cache": {0: "batch", 1: "capacity"}}


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def graph(inner: str | int, outer: str | int, symbol: str = "s1") -> onnx.ModelProto:
    return helper.make_model(helper.make_graph(
        [helper.make_node("F", ["x", "cache"], ["between"]), helper.make_node("G", ["between"],
                                                                              ["y"])],
        "g", [value("x", "s0", symbol, 4), value("cache", "s0", "s2", 8)],
        [value("y", outer, "s0")], value_info=[value("between", inner, 3)],
    ))  # fmt: skip


def names(of: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in of.type.tensor_type.shape.dim]


@pytest.mark.parametrize(
    ("expression", "name"),
    [("s0", "batch"), ("s1", "sequence"), ("s2", "capacity"), ("s0*s1", "tokens"),
     ("s1*s0", "tokens"), ("8*s0*s1", "tokens_times_8"), ("Min(64, s2)", "selected")],
)  # fmt: skip
def test_symbols_get_the_names_of_inputs(expression: str, name: str) -> None:
    model = graph(expression, expression)
    name_axes(model, AXES)
    x, cache = model.graph.input
    assert names(x) == ["batch", "sequence", 4]
    assert names(cache) == ["batch", "capacity", 8]
    assert names(model.graph.value_info[0]) == [name, 3]
    assert names(model.graph.output[0]) == [name, "batch"]


@pytest.mark.parametrize("expression", ["s0 + 1", "s0*s0", "s1*s2", "2*s0", "Min(64, s1)", "s9"])
def test_other_expressions_stay_open(expression: str) -> None:
    model = graph(expression, "s0")
    name_axes(model, AXES)
    dim = model.graph.value_info[0].type.tensor_type.shape.dim[0]
    assert not dim.HasField("dim_param") and not dim.HasField("dim_value")
    with pytest.raises(ValueError, match="y: no name for an axis of size"):
        name_axes(graph("s0", expression), AXES)


def test_one_symbol_with_two_names_is_refused() -> None:
    with pytest.raises(ValueError, match="axes sequence and capacity became one"):
        name_axes(graph("s0", "s0", symbol="s2"), AXES)
