"""The model's operator set as registered torch operators, which tracing keeps whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from glm_trt.model.operators import EagerOperators
from glm_trt.plugins.common.contract import Contract
from glm_trt.plugins.common.run import run
from glm_trt.plugins.common.selection import target_for
from glm_trt.plugins.common.torch_operators import register
from glm_trt.plugins.folders import CONTRACTS, part_of


def on_cuda(operator: str) -> Callable[..., Any]:
    """The operator's kernels as a function of CUDA tensors and attributes."""

    def call(*tensors: Tensor | None, **attributes: Any) -> Any:
        # Loaded at the first call: Triton is not needed where there is no GPU.
        launches = part_of(operator, "launch").LAUNCHES
        kernels = vars(part_of(operator, "kernel"))
        first = tensors[0]
        assert first is not None, "no operator's first input is optional"
        major, minor = torch.cuda.get_device_capability(first.device)
        inputs = [None if tensor is None else tensor.contiguous() for tensor in tensors]
        outputs = run(launches, kernels, inputs, attributes, target_for(10 * major + minor))
        return outputs if len(outputs) > 1 else outputs[0]

    return call


class RegisteredOperators(EagerOperators):
    """`torch.ops.glm_trt.*` in place of the eager definitions; same shapes and meaning.

    Every operator that has a folder is a method of its name.
    """


def _method(contract: Contract) -> Callable[..., Any]:
    def call(_: RegisteredOperators, *tensors: Tensor | None, **attributes: Any) -> Any:
        # Contracts know no booleans: ONNX has none.
        given = {n: int(v) if isinstance(v, bool) else v for n, v in attributes.items()}
        return getattr(torch.ops.glm_trt, contract.torch_name)(*tensors, **given)

    call.__name__, call.__doc__ = contract.torch_name, contract.doc
    return call


for _name, _contract in CONTRACTS.items():
    register(_contract, part_of(_name, "reference").reference, on_cuda(_name))
    setattr(RegisteredOperators, _name, _method(_contract))
