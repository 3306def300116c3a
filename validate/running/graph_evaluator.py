"""Running an exported graph node by node in PyTorch, in any dtype, with every value at hand.

In the graph's own dtype a node rounds as the eager model does; in float64 nothing narrows, and the
result is the exact value that the node should have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from glm_trt.model.checkpoint.weights import as_torch
from glm_trt.model.errors import BlockError, GlmTrtError
from glm_trt.model.operators import EagerOperators
from glm_trt.plugins.common.contract import Contract
from glm_trt.plugins.folders import contract_of, part_of

Attributes: TypeAlias = dict[str, Any]
# A tensor, or a weight that is read from its file when it is asked for (`model.weights`).
Value: TypeAlias = Any

_CASTS = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


@dataclass(frozen=True)
class _Step:
    """A node, and what of it is the same whenever it runs."""

    node: onnx.NodeProto
    attributes: Attributes
    operation: Callable[..., Any]

    def made(self, values: Mapping[str, Value]) -> dict[str, Tensor]:
        """Its outputs by name; BlockError if it cannot be run on these inputs."""
        node = self.node
        inputs = [values[name] if name else None for name in node.input]
        try:
            made = self.operation(self.attributes, *inputs)
        except (RuntimeError, IndexError, TypeError) as error:  # of shapes, indices, other inputs
            raise BlockError(f"{node.op_type} node {node.name}: {error}") from error
        outputs = made if isinstance(made, tuple | list) else (made,)
        return {name: x for name, x in zip(node.output, outputs, strict=False) if name}


class GraphEvaluator:
    """Evaluates the nodes of a graph.

    Parameters
    ----------
    model : an exported graph; function bodies are not looked at, `operators` stand for them.
    operators : what runs the operators of `plugins`.
    exact : casts between floating dtypes change nothing, so that float64 stays float64.
    """

    def __init__(
        self, model: onnx.ModelProto, operators: EagerOperators | None = None, exact: bool = False
    ) -> None:
        self.graph, self.exact = model.graph, exact
        self._opset = next((x.version for x in model.opset_import if not x.domain), 1)
        self.operators = operators or EagerOperators()
        self.outputs = [value.name for value in model.graph.output]
        self.constants = {
            x.name: as_torch(numpy_helper.to_array(x)) for x in model.graph.initializer
        }
        self._uses = Counter(name for node in model.graph.node for name in node.input)
        self._steps: list[_Step] = []  # of the graph's nodes; made when it first runs

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Value], inner: Collection[str] = ()) -> dict[str, Tensor]:
        """The graph's outputs by name, and those `inner` values that there are. Any other is let
        go when no later node reads it.

        Raises
        ------
        GlmTrtError, BlockError
            As `evaluate`.
        """
        self._steps = self._steps or [self._step(node) for node in self.graph.node]
        values: dict[str, Value] = {**inputs, **self.constants}
        wanted, left = {*self.outputs, *inner}, Counter(self._uses)
        found: dict[str, Tensor] = {}
        for step in self._steps:
            made = step.made(values)
            for name in step.node.input:
                left[name] -= 1
                if not left[name]:
                    values.pop(name, None)
            for name, value in made.items():
                if left[name]:
                    values[name] = value
                if name in wanted:
                    found[name] = value
        return found

    @torch.no_grad()
    def evaluate(self, node: onnx.NodeProto, values: Mapping[str, Value]) -> dict[str, Tensor]:
        """One node: its outputs by name.

        Raises
        ------
        GlmTrtError
            If the operator is neither ONNX's nor ours.
        BlockError
            If it cannot be run on these inputs.
        """
        return self._step(node).made(values)

    def _step(self, node: onnx.NodeProto) -> _Step:
        attributes = {a.name: _decoded(helper.get_attribute_value(a)) for a in node.attribute}
        return _Step(node, attributes, self._operation(node))

    def _operation(self, node: onnx.NodeProto) -> Callable[..., Any]:
        if (ours := contract_of(node)) is not None:
            return lambda attributes, *inputs: self._ours(ours, attributes, inputs)
        if node.domain:
            raise GlmTrtError(
                f"node {node.name}: expected an operator of ai.onnx or of our own, found "
                f"{node.domain}.{node.op_type}"
            )
        found = getattr(self, f"_{node.op_type}", None) or _OPERATIONS.get(node.op_type)
        return found or partial(_by_onnx, node, self._opset)

    def _Cast(self, attributes: Attributes, x: Tensor) -> Tensor:
        dtype = _CASTS[attributes["to"]]
        if self.exact and x.is_floating_point() and dtype.is_floating_point:
            return x
        return x.to(dtype)

    def _Constant(self, attributes: Attributes) -> Tensor:
        """As function bodies have them, in place of initializers."""
        ((name, value),) = attributes.items()
        if isinstance(value, onnx.TensorProto):
            tensor = as_torch(numpy_helper.to_array(value))
        else:
            whole = name in ("value_int", "value_ints")
            tensor = torch.tensor(value, dtype=torch.int64 if whole else torch.float32)
        return tensor.double() if self.exact and tensor.is_floating_point() else tensor

    def _CastLike(self, _: Attributes, x: Tensor, like: Tensor) -> Tensor:
        floating = x.is_floating_point() and like.is_floating_point()
        return x if self.exact and floating else x.to(like.dtype)

    def _RMSNormalization(self, attributes: Attributes, x: Tensor, weight: Tensor) -> Tensor:
        return self.operators.rms_norm(x, weight, attributes["epsilon"])

    def _RotaryEmbedding(self, attributes: Attributes, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        if attributes["interleaved"]:
            return self.operators.rotary_embedding(x, cos, sin, attributes["num_heads"])
        # Half-split: the pairs (xᵢ, x_{i + width/2}); no graph of ours has it, a faulty one may.
        heads = x.unflatten(-1, (attributes["num_heads"], -1))
        width = 2 * cos.shape[-1]
        paired = heads[..., :width].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        both = torch.cat([paired, heads[..., width:]], -1).flatten(-2)
        turned = self.operators.rotary_embedding(both, cos, sin, attributes["num_heads"])
        heads = turned.unflatten(-1, (attributes["num_heads"], -1))
        halves = heads[..., :width].unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        return torch.cat([halves, heads[..., width:]], -1).flatten(-2)

    def _TensorScatter(self, _: Attributes, cache: Tensor, update: Tensor, at: Tensor) -> Tensor:
        return self.operators.update_cache(cache, update, at)

    def _ours(self, contract: Contract, attributes: Attributes, inputs: tuple[Value, ...]) -> Any:
        """An operator that has a folder: as the model defines it, or its reference."""
        operator = getattr(self.operators, contract.torch_name, None)
        if operator is None:
            operator = part_of(contract.torch_name, "reference").reference
        absent = [None] * (len(contract.inputs) - len(inputs))
        return operator(*inputs, *absent, **attributes)


def _by_onnx(
    node: onnx.NodeProto, opset: int, _: Attributes, *inputs: Tensor | None
) -> tuple[Tensor, ...]:
    """An operator that no graph of ours has, but a changed one may: ONNX's own reference, which has
    no bfloat16, on the next wider type.
    """
    given = {
        name: (x.float() if x.dtype == torch.bfloat16 else x).numpy()
        for name, x in zip(node.input, inputs, strict=True)
        if x is not None
    }
    dtype = next((x.dtype for x in inputs if x is not None and x.is_floating_point()), None)
    graph = helper.make_graph(
        [node], "operator",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
         for name, x in given.items()],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        results = ReferenceEvaluator(model).run(None, given)
    except Exception as error:  # of any kind, as each operator is code of its own
        raise BlockError(f"{node.op_type} node {node.name}: {error}") from error
    tensors = (as_torch(np.asarray(x)) for x in results)
    return tuple(x.to(dtype) if dtype and x.is_floating_point() else x for x in tensors)


def _gemm(attributes: Attributes, x: Tensor, weight: Value, bias: Tensor | None = None) -> Tensor:
    y = weight(x) if callable(weight) else F.linear(x, weight)
    return y if bias is None else y + bias


def _gather(attributes: Attributes, table: Value, indices: Tensor) -> Tensor:
    if callable(table):
        return table(indices)
    axis = attributes.get("axis", 0) % table.ndim
    return table[(*[slice(None)] * axis, indices)]


def _layer_norm(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, attributes["epsilon"])


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape(shape.tolist())


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end")])


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> Any:
    axis = attributes["axis"]
    if sizes is None:
        return x.chunk(attributes["num_outputs"], axis)
    return x.split(sizes.tolist(), axis)


def _squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    for axis in axes.tolist():
        x = x.unsqueeze(axis)
    return x


def _expand(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, shape.tolist()))


def _clip(
    attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    return torch.clamp(x, low, high)


def _sum(attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    return x.sum(axes.tolist(), keepdim=bool(attributes["keepdims"]))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda _, x, y: x + y,
    "Clip": _clip,
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "Cos": lambda _, x: x.cos(),
    "Exp": lambda _, x: x.exp(),
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": lambda attributes, x, at: x.gather(attributes["axis"], at),
    "Gemm": _gemm,
    "Greater": lambda _, x, y: x > y,
    "Identity": lambda _, x: x,
    "LayerNormalization": _layer_norm,
    "Less": lambda _, x, y: x < y,
    "MatMul": lambda _, x, y: x @ y,
    "Mul": lambda _, x, y: x * y,
    "Neg": lambda _, x: -x,
    "Pow": lambda _, x, y: x**y,
    "Range": lambda _, start, stop, step: torch.arange(start.item(), stop.item(), step.item()),
    "Reciprocal": lambda _, x: x.reciprocal(),
    "ReduceSum": _sum,
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Sin": lambda _, x: x.sin(),
    "Softplus": lambda _, x: F.softplus(x),
    "Split": _split,
    "Sqrt": lambda _, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda _, x, y: x - y,
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda _, condition, x, y: torch.where(condition, x, y),
}


def _decoded(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
