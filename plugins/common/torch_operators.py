"""The torch operators that contracts describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx.defs
import torch
from torch import Tensor

from glm_trt.plugins.common.contract import DOMAIN, Contract
from glm_trt.plugins.common.expressions import evaluate

_LIBRARY = torch.library.Library(DOMAIN, "DEF")


def register(
    contract: Contract, reference: Callable[..., Any], kernels: Callable[..., Any]
) -> None:
    """Define the torch operator, and the ONNX schema of an operator of ours.

    The operator is `reference` on the CPU, `kernels` on a CUDA device, and the contract's fake.
    """

    def of_contract(*tensors: Tensor | None, **attributes: Any) -> Any:
        return fake(contract, *tensors, **attributes)

    _LIBRARY.define(contract.torch_schema())
    _LIBRARY.impl(contract.torch_name, reference, "CPU")
    _LIBRARY.impl(contract.torch_name, kernels, "CUDA")
    torch.library.register_fake(f"{DOMAIN}::{contract.torch_name}", of_contract, lib=_LIBRARY)
    if contract.domain == DOMAIN:
        onnx.defs.register_schema(contract.onnx_schema())


def axis_sizes(
    contract: Contract, tensors: tuple[Tensor | None, ...], attributes: dict[str, Any]
) -> dict[str, Any]:
    """The size of every axis of a call, also while torch traces, where sizes are symbols."""
    sizes: dict[str, Any] = {
        axis: size
        for port, tensor in zip(contract.inputs, tensors, strict=True)
        if tensor is not None
        for axis, size in zip(port.axes, tensor.shape, strict=True)
    }
    names = sizes | contract.integers(attributes)
    for axis, expression in contract.derived.items():
        sizes.setdefault(axis, evaluate(expression, names, minimum=torch.sym_min))
    return sizes


def fake(contract: Contract, *tensors: Tensor | None, **attributes: Any) -> Any:
    """Outputs of the right shape and dtype without data, for tracing."""
    sizes = axis_sizes(contract, tensors, attributes)
    types, first = contract.types_of(tensors), tensors[0]
    assert first is not None, "no operator's first input is optional"
    outputs = tuple(
        first.new_empty(
            [sizes[axis] for axis in port.axes], dtype=getattr(torch, types.of(port.dtype))
        )
        for port in contract.outputs
    )
    return outputs if len(outputs) > 1 else outputs[0]
