"""The operator set that is traced: standard ONNX operators by name where one exists."""

from __future__ import annotations

from typing import Any

import torch
from onnxscript import values
from torch import Tensor

from glm_trt.plugins.common.contract import DOMAIN, VERSION
from glm_trt.plugins.operators import CONTRACTS, RegisteredOperators


class TracedOperators(RegisteredOperators):
    """Emits RMSNormalization, RotaryEmbedding, TensorScatter, CausalConvWithState and
    LinearAttention; the rest stay whole.
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

    def causal_conv_with_state(
        self, x: Tensor, weight: Tensor, past_state: Tensor, *, activation: str = "silu"
    ) -> tuple[Tensor, Tensor]:
        """ai.onnx 27 CausalConvWithState; with a bias of zeros: TensorRT asks for every input."""
        bias = torch.zeros(weight.shape[0], dtype=x.dtype, device=x.device)
        return _standard(
            "causal_conv_with_state", [x, weight, bias, past_state], {"activation": activation}
        )

    def linear_attention(self, *inputs: Any, **attributes: Any) -> tuple[Tensor, Tensor]:
        """ai.onnx 27 LinearAttention, with every input."""
        return _standard("linear_attention", list(inputs), attributes)


def _standard(name: str, tensors: list[Tensor], attributes: dict[str, Any]) -> Any:
    """The node of a standard operator that the exporter's own opset has not got yet."""
    contract = CONTRACTS[name]
    outputs = contract.fake(*tensors, **attributes)
    return tuple(
        torch.onnx.ops.symbolic_multi_out(
            contract.name, tensors, attributes,
            dtypes=[output.dtype for output in outputs], shapes=[o.shape for o in outputs],
        )
    )  # fmt: skip


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
