"""The contract of an operator as data; the torch operator and the ONNX schema come from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx.defs
import torch
from torch import Tensor

DOMAIN, VERSION = "glm_trt", 1
ACTIVATION = "T"  # a port of this type has the dtype of the block
ACTIVATION_DTYPES = ("float32", "float16", "bfloat16")

_TORCH = {"float32": torch.float32, "int32": torch.int32, "int64": torch.int64}
_ONNX = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


@dataclass(frozen=True)
class Port:
    """An input or output: axes by name, dtype a name or `ACTIVATION`."""

    name: str
    axes: tuple[str, ...]
    dtype: str = ACTIVATION


@dataclass(frozen=True)
class Contract:
    """One operator.

    Attributes
    ----------
    name : ONNX op type in the domain `glm_trt`; `torch_name` in `torch.ops.glm_trt`.
    inputs, outputs : in order; an output axis is an input's axis, or derived.
    attributes : name → int or float, always explicit.
    derived : output axis → (attribute,) or (attribute, axis) of which it is the minimum.
    tolerance : dtype → relative L2 error allowed against the reference in float64.
    """

    name: str
    torch_name: str
    doc: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    attributes: dict[str, type]
    tolerance: dict[str, float]
    derived: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def torch_schema(self) -> str:
        """For example `moe_routing(Tensor logits, …, *, int top_k) -> (Tensor, Tensor)`."""
        inputs = [f"Tensor {port.name}" for port in self.inputs]
        attributes = [f"{kind.__name__} {name}" for name, kind in self.attributes.items()]
        outputs = ", ".join("Tensor" for _ in self.outputs)
        returns = f"({outputs})" if len(self.outputs) > 1 else outputs
        return f"{self.torch_name}({', '.join([*inputs, '*', *attributes])}) -> {returns}"

    def fake(self, *tensors: Tensor, **attributes: Any) -> Any:
        """Outputs of the right shape and dtype without data, for tracing."""
        sizes = {
            axis: size
            for port, tensor in zip(self.inputs, tensors, strict=True)
            for axis, size in zip(port.axes, tensor.shape, strict=True)
        }
        for axis, (attribute, *other) in self.derived.items():
            size = attributes[attribute]
            sizes[axis] = torch.sym_min(size, sizes[other[0]]) if other else size
        activation = tensors[0].dtype
        outputs = tuple(
            tensors[0].new_empty(
                [sizes[axis] for axis in port.axes], dtype=_TORCH.get(port.dtype, activation)
            )
            for port in self.outputs
        )
        return outputs if len(outputs) > 1 else outputs[0]

    def onnx_schema(self) -> onnx.defs.OpSchema:
        """The operator's schema in the domain `glm_trt`."""
        schema = onnx.defs.OpSchema
        kinds = {int: schema.AttrType.INT, float: schema.AttrType.FLOAT}

        def ports(of: Sequence[Port]) -> list[Any]:
            names = {"float32": "tensor(float)", ACTIVATION: ACTIVATION}
            return [
                schema.FormalParameter(p.name, names.get(p.dtype, f"tensor({p.dtype})")) for p in of
            ]

        uses_activation = any(p.dtype == ACTIVATION for p in self.inputs)
        types = [f"tensor({_ONNX[name]})" for name in ACTIVATION_DTYPES]
        return schema(
            self.name,
            DOMAIN,
            VERSION,
            doc=self.doc,
            inputs=ports(self.inputs),
            outputs=ports(self.outputs),
            type_constraints=[(ACTIVATION, types, "the block's dtype")] if uses_activation else [],
            attributes=[
                schema.Attribute(name, kinds[kind], "") for name, kind in self.attributes.items()
            ],
        )


_LIBRARY = torch.library.Library(DOMAIN, "DEF")


def register(
    contract: Contract, reference: Callable[..., Any], kernels: Callable[..., Any]
) -> None:
    """Define the torch operator and the ONNX schema.

    The operator is `reference` on the CPU, `kernels` on a CUDA device, and the contract's fake.
    """
    _LIBRARY.define(contract.torch_schema())
    _LIBRARY.impl(contract.torch_name, reference, "CPU")
    _LIBRARY.impl(contract.torch_name, kernels, "CUDA")
    torch.library.register_fake(f"{DOMAIN}::{contract.torch_name}", contract.fake, lib=_LIBRARY)
    onnx.defs.register_schema(contract.onnx_schema())
