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
from glm_trt.plugins.common.contract import STANDARD, STATE, Contract
from glm_trt.plugins.folders import contract_of

DOMAIN = "com.microsoft"
SINCE = (1, 25)  # of onnxruntime


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
    """Operators of ai.onnx 27 that have a folder → those of `com.microsoft`, which have the same
    contract, in a graph of a lower opset.

    1. Nodes change their domain, and lose attributes that the contract has not.
    2. A CUDA kernel takes a state of the dtype of its first input alone. One of a wider dtype
       keeps it: the other inputs are converted to it, and the result back.

    Raises
    ------
    MissingCapabilityError
        If this onnxruntime has neither form of a linear layer.
    """
    if not any(_of_27(node) for node in model.graph.node):
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
        contract = _of_27(node)
        if contract is None:
            rewritten.graph.node.append(node)
            continue
        kept = [a for a in node.attribute if a.name in contract.attributes]
        contrib = onnx.NodeProto()
        contrib.CopyFrom(node)
        contrib.domain = DOMAIN
        del contrib.attribute[:]
        contrib.attribute.extend(kept)
        rewritten.graph.node.extend(_widened(contrib, contract, dtypes))
    if all(entry.domain != DOMAIN for entry in rewritten.opset_import):
        rewritten.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    lower_opset(rewritten)
    return rewritten


def _of_27(node: onnx.NodeProto) -> Contract | None:
    contract = contract_of(node)
    return contract if contract and contract.domain == STANDARD else None


def _widened(
    node: onnx.NodeProto, contract: Contract, dtypes: dict[str, int]
) -> list[onnx.NodeProto]:
    """The node as in case 2, between those that convert."""
    place = next((i for i, port in enumerate(contract.inputs) if port.dtype == STATE), None)
    if place is None:
        return [node]
    query, state = dtypes[node.input[0]], dtypes[node.input[place]]
    if query == state:
        return [node]
    nodes = []
    for i, name in enumerate(node.input):
        if i != place:
            node.input[i] = f"{node.name}_{i}_wide"
            nodes.append(helper.make_node("Cast", [name], [node.input[i]], to=state))
    output = node.output[0]
    node.output[0] = f"{node.name}_wide"
    return [*nodes, node, helper.make_node("Cast", [node.output[0]], [output], to=query)]
