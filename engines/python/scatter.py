"""Writing into caches on an onnxruntime whose CPU kernels lack `TensorScatter` (1.24 does)."""

from __future__ import annotations

import functools

import onnx
import onnx.parser
from onnx import TensorProto, helper

from glm_trt.engines.python.onnxruntime_module import ort

DOMAIN = "glm_trt.cpu"
# cache [B, 1, C, D], update [B, 1, T, D], first [B] -> the cache, its T positions from `first` on
# replaced in each row.
_BODY = """
<domain: "glm_trt.cpu", opset_import: ["" : OPSET]>
WriteCache (cache, update, first) => (written)
{
  shape = Shape (update)
  tokens = Shape <start: int = 2, end: int = 3> (update)
  zero = Constant <value = int64 {0}> ()
  one = Constant <value = int64 {1}> ()
  count = Squeeze (tokens)
  steps = Range (zero, count, one)
  behind = Constant <value = int64[3] {1, 2, 3}> ()
  starts = Unsqueeze (first, behind)
  last = Constant <value = int64[1] {1}> ()
  across = Unsqueeze (steps, last)
  places = Add (starts, across)
  indices = Expand (places, shape)
  written = ScatterElements <axis: int = 2> (cache, indices, update)
}
"""


@functools.cache
def has_tensor_scatter() -> bool:
    """Whether this onnxruntime runs `TensorScatter` on the CPU, tried on a graph of that alone."""
    inputs = [
        helper.make_tensor_value_info("cache", TensorProto.FLOAT, [1, 1, 2, 1]),
        helper.make_tensor_value_info("update", TensorProto.FLOAT, [1, 1, 1, 1]),
        helper.make_tensor_value_info("first", TensorProto.INT64, [1]),
    ]
    output = helper.make_tensor_value_info("written", TensorProto.FLOAT, [1, 1, 2, 1])
    node = helper.make_node("TensorScatter", ["cache", "update", "first"], ["written"], axis=-2)
    model = helper.make_model(
        helper.make_graph([node], "probe", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 24)],
        ir_version=10,
    )
    try:
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except ort.capi.onnxruntime_pybind11_state.NotImplemented:
        return False
    return True


def write_caches(model: onnx.ModelProto) -> onnx.ModelProto:
    """`TensorScatter` → a function over `ScatterElements`, where onnxruntime lacks the operator.

    The values are the same, bit for bit. A cache has four axes, and its third one is written.
    """
    if has_tensor_scatter() or not any(n.op_type == "TensorScatter" for n in model.graph.node):
        return model
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    for node in rewritten.graph.node:
        if node.op_type == "TensorScatter":
            node.op_type, node.domain = "WriteCache", DOMAIN
            del node.attribute[:]
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    rewritten.functions.append(onnx.parser.parse_function(_BODY.replace("OPSET", str(opset))))
    if all(entry.domain != DOMAIN for entry in rewritten.opset_import):
        rewritten.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return rewritten
