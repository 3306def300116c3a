"""A graph cut in two at its experts, whose weights stay in their files.

onnxruntime's kernels want the experts' weights stacked in float32: 38.7 GB a layer of the full
model. Here a session runs what comes before them, another one runs each expert that some token
reached, on the tensors that the checkpoint stores, as they are mapped, and a third what follows.
So no weight is copied, and only the experts that are reached are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from glm_trt.engines.python.onnxruntime_module import ort
from glm_trt.engines.python.values import ort_value
from glm_trt.export.passes.lower_opset import lower_opset
from glm_trt.model.checkpoint.bindings import (
    Binding,
    TensorSource,
    expert_parts,
    is_large_stack,
    release_expert,
)
from glm_trt.plugins.bodies import body_of
from glm_trt.plugins.common.contract import Contract, StackedExperts
from glm_trt.plugins.common.onnx_text import OPSET
from glm_trt.plugins.folders import CONTRACTS, contract_of

Array = NDArray[Any]
# What stands before the stored tensors of stacked experts, and before those of a linear layer.
_GIVEN, _LINEAR_GIVEN = 3, 1
_ELEMENTS = {"float32": "float"}  # as ONNX's text says them, where it says others
_MODULES = ("gate", "up", "down")


class MappedExperts:
    """One stacked weight of a layer's experts, left in its file.

    Parameters
    ----------
    dtype : what whole experts are given in; None for bytes and scales, which are as they are.
    """

    def __init__(
        self, binding: Binding, source: TensorSource, dtype: np.dtype[Any] | None = None
    ) -> None:
        self.binding, self.source, self.dtype = binding, source, dtype

    def modules(self, expert: int, count: int) -> list[Array]:
        """The expert's tensors, one for each of `count` modules (gate and up, or down): views, or
        copies of those that are stored in another dtype.
        """
        parts = expert_parts(self.binding, self.source, expert)
        if len(parts) < count:  # stored as one: rows after one another, or [2, ·] already
            shape = parts[0].shape
            of_module = shape[1:] if shape[0] == count else (shape[0] // count, *shape[1:])
            parts = list(parts[0].reshape(count, *of_module))
        parts = [part.reshape(part.shape or (1,)) for part in parts]
        wanted = self.dtype
        return parts if wanted is None else [part.astype(wanted, copy=False) for part in parts]

    def release(self, expert: int) -> None:
        """Let go of the memory of an expert that was read, if that is much."""
        if is_large_stack(self.binding):
            release_expert(self.binding, self.source, expert)


class CutGraph:
    """What `onnxruntime.InferenceSession` is to a graph, for one with a node of experts.

    Parameters
    ----------
    model : the graph; its experts' weights become inputs of no session.
    stored : ONNX's number of the dtype in which whole experts' weights are given.
    make : makes a session.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        stored: int,
        make: Callable[[onnx.ModelProto], ort.InferenceSession],
    ) -> None:
        before, after, node = cut_at_experts(model)
        self.weights = frozenset(stored_inputs(node))
        contract = experts_contract(node)
        assert contract is not None, "it was cut at such a node"
        self._count = stored_tensors(contract)
        whole = not linear_of(contract)
        self.stored = onnx.helper.tensor_dtype_to_np_dtype(stored) if whole else None
        self._before, self._after = make(before), make(after)
        self._expert = make(expert_model(contract, stored))
        self._node = node
        sessions = (self._before, self._after)
        inputs = {value.name: value for s in sessions for value in s.get_inputs()}
        outputs = {value.name: value for s in sessions for value in s.get_outputs()}
        self._inputs = [value for name, value in inputs.items() if name not in outputs]
        self._inputs = [value for value in self._inputs if value.name != node.output[0]]
        wanted = [value.name for value in model.graph.output]
        self._outputs = [outputs[name] for name in wanted if name in outputs]

    def get_inputs(self) -> list[Any]:
        """The inputs, but for the experts' weights."""
        return self._inputs

    def get_outputs(self) -> list[Any]:
        """The outputs of the whole graph."""
        return self._outputs

    def io_binding(self) -> CutBinding:
        """An empty binding."""
        return CutBinding()

    def run_with_iobinding(self, binding: CutBinding) -> None:
        """One run."""
        x, indices, weights = self._node.input[:_GIVEN]
        values = _run(self._before, binding.inputs, binding.outputs)
        y = self._run_experts(
            values[x].numpy(), values[indices].numpy(), values[weights].numpy(),
            [binding.experts[name] for name in stored_inputs(self._node)],
        )  # fmt: skip
        inputs = binding.inputs | values | {self._node.output[0]: ort_value(y)}
        binding.results = values | _run(self._after, inputs, binding.outputs)

    def _run_experts(
        self, x: Array, indices: Array, weights: Array, stacked: list[MappedExperts]
    ) -> Array:
        """x [T, hidden], indices, weights [T, k] → [T, hidden]."""
        y = np.zeros_like(x)
        count = self._count
        for expert in np.unique(indices).tolist():
            token, slot = np.nonzero(indices == expert)
            arrays = {"x": x[token], "weight": weights[token, slot, None]}
            for i, (both, down) in enumerate(zip(stacked[:count], stacked[count:], strict=True)):
                parts = [*both.modules(expert, 2), *down.modules(expert, 1)]
                names = (f"{module}_{i}" for module in _MODULES)
                arrays |= dict(zip(names, parts, strict=True))
            feeds = {name: ort_value(array) for name, array in arrays.items()}
            (part,) = self._expert.run_with_ort_values(None, feeds)
            np.add.at(y, token, part.numpy())
            for weight in stacked:
                weight.release(expert)
        return y


class CutBinding:
    """The part of `onnxruntime.IOBinding` that the runtime uses, for a `CutGraph`."""

    def __init__(self) -> None:
        self.inputs: dict[str, ort.OrtValue] = {}
        self.outputs: dict[str, ort.OrtValue | None] = {}
        self.experts: dict[str, MappedExperts] = {}
        self.results: dict[str, ort.OrtValue] = {}

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        """A value, or the weights of experts."""
        if isinstance(value, MappedExperts):
            self.experts[name] = value
        else:
            self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: ort.OrtValue) -> None:
        """Where to write."""
        self.outputs[name] = value

    def bind_output(self, name: str) -> None:
        """To be written to memory of onnxruntime's."""
        self.outputs[name] = None

    def get_outputs(self) -> list[ort.OrtValue]:
        """The outputs in the order in which they were bound."""
        return [self.results[name] for name in self.outputs]


def _run(
    session: ort.InferenceSession,
    inputs: dict[str, ort.OrtValue],
    outputs: dict[str, ort.OrtValue | None],
) -> dict[str, ort.OrtValue]:
    """Every output by name."""
    binding = session.io_binding()
    for value in session.get_inputs():
        binding.bind_ortvalue_input(value.name, inputs[value.name])
    names = [value.name for value in session.get_outputs()]
    for name in names:
        if (given := outputs.get(name)) is not None:
            binding.bind_ortvalue_output(name, given)
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    return dict(zip(names, binding.get_outputs(), strict=True))


def experts_node(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """The graph's node of experts; no graph of ours has two."""
    return next((node for node in model.graph.node if experts_contract(node)), None)


def experts_contract(node: onnx.NodeProto) -> Contract | None:
    """The contract of a node of stacked experts; None for any other."""
    contract = contract_of(node)
    return contract if contract and isinstance(contract.form, StackedExperts) else None


def linear_of(experts: Contract) -> str:
    """The folder of the linear layer with what is stored of one expert; "" for whole weights."""
    assert isinstance(experts.form, StackedExperts)
    return experts.form.linear


def has_narrow_experts(node: onnx.NodeProto) -> bool:
    """Whether the weights of a node of stacked experts are stored narrow."""
    contract = experts_contract(node)
    return contract is not None and bool(linear_of(contract))


def stored_inputs(node: onnx.NodeProto) -> list[str]:
    """What is stored of the experts: first of gate and up, then of down."""
    return list(node.input[_GIVEN:])


def stored_tensors(experts: Contract) -> int:
    """How many tensors are stored of a module: its weight, its scales."""
    return (len(experts.inputs) - _GIVEN) // 2


def cut_at_experts(
    model: onnx.ModelProto,
) -> tuple[onnx.ModelProto, onnx.ModelProto, onnx.NodeProto]:
    """What does not need the experts' result, what does, and their node.

    The first gives the graph's outputs that it computes, what the experts take and what the second
    takes; the second takes the experts' result besides.
    """
    node = experts_node(model)
    assert node is not None
    later = {node.output[0]}
    after = []
    for other in model.graph.node:  # in topological order
        if later & set(other.input):
            later |= set(other.output)
            after.append(other)
    before = [other for other in model.graph.node if other is not node and other not in after]
    made = {name for other in before for name in other.output}
    needed = {name for other in after for name in other.input} | set(node.input[:_GIVEN])
    wanted = {value.name for value in model.graph.output}
    graphs = []
    for nodes, given, results in (
        (before, set[str](), made & (needed | wanted)),
        (after, made | {node.output[0]}, later & wanted),
    ):
        cut = onnx.ModelProto()
        cut.CopyFrom(model)
        for field in ("node", "input", "output"):
            cut.graph.ClearField(field)
        cut.graph.node.extend(nodes)
        read = {name for other in nodes for name in other.input}
        cut.graph.input.extend(value for value in model.graph.input if value.name in read)
        known = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
        cut.graph.input.extend(known[name] for name in sorted(read & given))
        cut.graph.output.extend(known[name] for name in sorted(results))
        graphs.append(cut)
    return graphs[0], graphs[1], node


def expert_model(experts: Contract, stored: int) -> onnx.ModelProto:
    """One expert: x [n, hidden], weight [n, 1] and the tensors of its modules → [n, hidden].

    Parameters
    ----------
    experts : the contract of the stacked experts.
    stored : ONNX's number of the dtype of whole weights.
    """
    linear = CONTRACTS[linear_of(experts)] if linear_of(experts) else None
    kinds: list[tuple[str, tuple[str, ...]]]
    if linear is None:
        name = onnx.helper.tensor_dtype_to_string(stored).removeprefix("TensorProto.").lower()
        kinds = [(name, ("rows", "columns"))]
    else:
        ports = linear.inputs[_LINEAR_GIVEN:]
        kinds = [(_ELEMENTS.get(port.dtype, port.dtype), port.axes) for port in ports]

    def product(module: str, x: str, y: str) -> str:
        weights = ", ".join(f"{module}_{i}" for i in range(len(kinds)))
        if linear is None:
            wide = f"{module}_wide"
            return f"{wide} = Cast <to = 1> ({weights})\n{y} = Gemm <transB = 1> ({x}, {wide})"
        # Of activations that stay as they are: what an attribute may ask for is of other layers.
        asked = ", ".join(f"{name} = 0" for name in linear.attributes)
        return f"{y} = glm_trt.{linear.name} {f'<{asked}>' if asked else ''} ({x}, {weights})"

    inputs = [
        f"{kind}[{', '.join(f'{axis}_{module}' for axis in axes)}] {module}_{i}"
        for module in _MODULES
        for i, (kind, axes) in enumerate(kinds)
    ]
    text = f"""
        <ir_version: 10, opset_import: ["": {OPSET}, "glm_trt": 1]>
        expert (float[n, hidden] x, float[n, one] weight, {", ".join(inputs)})
            => (float[n, hidden] y)
        {{
            {product("gate", "x", "given")}
            {product("up", "x", "other")}
            share = Sigmoid (given)
            silu = Mul (given, share)
            inner = Mul (silu, other)
            {product("down", "inner", "part")}
            y = Mul (part, weight)
        }}"""
    model = onnx.parser.parse_model(text)
    if linear is not None:
        model.functions.append(body_of(linear.torch_name))
    lower_opset(model)
    return model
