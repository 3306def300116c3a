"""The operator set that is traced: standard ONNX operators by name where one exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import values
from torch import Tensor

from glm_trt.plugins.common.contract import DOMAIN, STANDARD, VERSION, Contract
from glm_trt.plugins.common.torch_operators import axis_sizes, fake
from glm_trt.plugins.folders import CONTRACTS
from glm_trt.plugins.operators import RegisteredOperators


class TracedOperators(RegisteredOperators):
    """Emits RMSNormalization, RotaryEmbedding, TensorScatter, and of the operators that have a
    folder those that ONNX defines; the rest stay whole.
    """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """ai.onnx 23 RMSNormalization over the last axis, the mean in float32."""
        return torch.onnx.ops.symbolic(
            "RMSNormalization", [x, weight], {"axis": -1, "epsilon": eps, "stash_type": 1},
            dtype=x.dtype, shape=x.shape, version=23,
        )  # fmt: skip

    def rotary_embedding(self, x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        """ai.onnx 23 RotaryEmbedding, interleaved, on the first entries of each head."""
        attributes: dict[str, Any] = {
            "interleaved": 1,
            "num_heads": heads,
            "rotary_embedding_dim": 2 * int(cos.shape[-1]),
        }
        return torch.onnx.ops.symbolic(
            "RotaryEmbedding", [x, cos, sin], attributes, dtype=x.dtype, shape=x.shape, version=23
        )

    def update_cache(self, cache: Tensor, update: Tensor, past_lengths: Tensor) -> Tensor:
        """ai.onnx 24 TensorScatter, which runtimes do in place."""
        return torch.onnx.ops.symbolic(
            "TensorScatter", [cache, update, past_lengths], {"axis": -2, "mode": "linear"},
            dtype=cache.dtype, shape=cache.shape, version=24,
        )  # fmt: skip


def _standard(contract: Contract) -> Callable[..., Any]:
    """A method that emits the node of an operator that the exporter's own opset has not got yet.

    An optional input that the model leaves out is zeros: TensorRT asks for every input.
    """

    def emit(_: TracedOperators, *tensors: Tensor | None, **attributes: Any) -> Any:
        sizes = axis_sizes(contract, tensors, attributes)
        first = tensors[0]
        assert first is not None, "no operator's first input is optional"
        given = [
            _zeros([sizes[axis] for axis in port.axes], first) if tensor is None else tensor
            for port, tensor in zip(contract.inputs, tensors, strict=True)
        ]
        outputs = fake(contract, *given, **attributes)
        return tuple(
            torch.onnx.ops.symbolic_multi_out(
                contract.name, given, attributes,
                dtypes=[output.dtype for output in outputs], shapes=[o.shape for o in outputs],
            )
        )  # fmt: skip

    emit.__name__, emit.__doc__ = contract.torch_name, contract.doc
    return emit


def _zeros(sizes: list[Any], like: Tensor) -> Tensor:
    # Traced as a constant; `new_zeros` is traced as ConstantOfShape.
    return torch.zeros(sizes, dtype=like.dtype, device=like.device)


for _name, _contract in CONTRACTS.items():
    if _contract.domain == STANDARD:
        setattr(TracedOperators, _name, _standard(_contract))


def translations() -> dict[Any, Any]:
    """torch operator of ours → function that writes its ONNX node, for `torch.onnx.export`."""
    domain = values.Opset(DOMAIN, VERSION)

    def translation(name: str) -> Any:
        def write(*tensors: Any, **attributes: Any) -> Any:
            return getattr(domain, name)(*tensors, **attributes)

        return write

    return {
        getattr(torch.ops.glm_trt, contract.torch_name).default: translation(contract.name)
        for contract in CONTRACTS.values()
        if contract.domain == DOMAIN
    }
