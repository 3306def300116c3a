"""Linear layers on an onnxruntime that does not know ai.onnx 27, or whose provider has no kernels
of it.
"""

from __future__ import annotations

import functools

import onnx
from onnx import TensorProto, helper

from glm_trt.engines.python.onnxruntime_module import CPU, GPU, ort
from glm_trt.export.passes.lower_opset import lower_opset
from glm_trt.model.errors import MissingCapabilityError
from glm_trt.model.requirements import installed

DOMAIN = "com.microsoft"
SINCE = (1, 25)  # of onnxruntime
STATE = 3  # which of LinearAttention's inputs is its past state
# Standard operator → the attributes that onnxruntime's operator of the same name has.
_ATTRIBUTES = {
    "LinearAttention": ("q_num_heads", "kv_num_heads", "update_rule", "scale"),
    "CausalConvWithState": ("activation",),
}


@functools.cache
def reads_opset(version: int) -> bool:
    """Whether this onnxruntime takes graphs of that opset of ai.onnx, tried on one."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y]),
        opset_imports=[helper.make_opsetid("", version)],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's own have no base but this
        return False
    return True


def use_contrib_linear(model: onnx.ModelProto) -> onnx.ModelProto:
    """`LinearAttention` and `CausalConvWithState` of ai.onnx 27 → those of `com.microsoft`, which
    have the same contract, in a graph of a lower opset.

    1. Nodes change their domain, and lose attributes that the others have not.
    2. The CUDA kernel of `LinearAttention` takes a state of the dtype of its queries alone. One of
       a wider dtype keeps it: the other inputs are converted to it, and the result back.

    Raises
    ------
    MissingCapabilityError
        If this onnxruntime has neither form of a linear layer.
    """
    if not any(_is_of_27(node) for node in model.graph.node):
        return model
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < SINCE:
        least = ".".join(map(str, SINCE))
        name = GPU if installed(GPU) else CPU
        raise MissingCapabilityError(
            f"linear layers need onnxruntime {least} or newer, found {ort.__version__}: "
            f"pip install '{name}>={least}'"
        )
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    rewritten.graph.ClearField("node")
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    dtypes = {value.name: value.type.tensor_type.elem_type for value in values}
    for node in model.graph.node:
        if not _is_of_27(node):
            rewritten.graph.node.append(node)
            continue
        kept = [a for a in node.attribute if a.name in _ATTRIBUTES[node.op_type]]
        contrib = onnx.NodeProto()
        contrib.CopyFrom(node)
        contrib.domain = DOMAIN
        del contrib.attribute[:]
        contrib.attribute.extend(kept)
        is_attention = node.op_type == "LinearAttention"
        rewritten.graph.node.extend(_widened(contrib, dtypes) if is_attention else [contrib])
    if all(entry.domain != DOMAIN for entry in rewritten.opset_import):
        rewritten.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    lower_opset(rewritten)
    return rewritten


def _is_of_27(node: onnx.NodeProto) -> bool:
    return not node.domain and node.op_type in _ATTRIBUTES


def _widened(node: onnx.NodeProto, dtypes: dict[str, int]) -> list[onnx.NodeProto]:
    """The node as in case 2, between those that convert."""
    query, state = dtypes[node.input[0]], dtypes[node.input[STATE]]
    if query == state:
        return [node]
    nodes = []
    for i, name in enumerate(node.input):
        if i != STATE:
            node.input[i] = f"{node.name}_{i}_wide"
            nodes.append(helper.make_node("Cast", [name], [node.input[i]], to=state))
    output = node.output[0]
    node.output[0] = f"{node.name}_wide"
    return [*nodes, node, helper.make_node("Cast", [node.output[0]], [output], to=query)]
