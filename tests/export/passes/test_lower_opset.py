"""The lowest opset, on graphs of a node or two."""

from __future__ import annotations

import onnx
import pytest

from glm_trt.export.onnx_version import RELEASES
from glm_trt.export.passes.lower_opset import WRITTEN_FOR, lower_opset


def declared(body: str, function: str = "y = Neg (x)") -> set[int]:
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 27, "f": 1]>
        g (float[n] x) => (float[n] z) {{ {body} }}
        <domain: "f", opset_import: ["": 27]> F (x) => (y) {{ {function} }}
    """)
    lower_opset(model)
    of_function = model.functions[0].opset_import
    return {entry.version for entry in (*model.opset_import, *of_function) if not entry.domain}


@pytest.mark.parametrize(
    ("body", "lowest"),
    [("z = Add (x, x)", 14), ("y = Add (x, x)  z = Sigmoid (y)", 14),
     ("z = TensorScatter (x, x)", 24), ("z, s = CausalConvWithState (x, x)", 27),
     ("z = f.F (x)", 13), ("z = NoSuchOperator (x)", max(RELEASES))],
)  # fmt: skip
def test_the_newest_definition_in_use_decides(body: str, lowest: int) -> None:
    assert declared(body) == {lowest}


def test_a_function_body_counts() -> None:
    assert declared("z = f.F (x)", "y = RMSNormalization (x, x)") == {23}
    assert declared("z = Add (x, x)", "y, s = CausalConvWithState (x, x)") == {27}


def test_later_definitions_do_not_count() -> None:
    """Cast has one of opset 25: its new dtypes are not what was written."""
    assert onnx.defs.get_schema("Cast", 27, "").since_version > WRITTEN_FOR
    assert declared("z = Cast <to = 1> (x)") == {24}
