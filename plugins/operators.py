"""The model's operator set as registered torch operators, which tracing keeps whole."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from glm_trt.model.operators import EagerOperators
from glm_trt.plugins import (
    causal_conv_with_state,
    causal_mla,
    fp8_linear,
    fp8_moe_experts,
    indexer_topk,
    linear_attention,
    moe_experts,
    moe_routing,
    nvfp4_linear,
    nvfp4_moe_experts,
    sparse_mla,
)
from glm_trt.plugins.common.contract import Contract, register
from glm_trt.plugins.common.launch import run
from glm_trt.plugins.common.selection import target_for

OPERATORS = (
    moe_routing,
    moe_experts,
    indexer_topk,
    sparse_mla,
    causal_mla,
    linear_attention,
    causal_conv_with_state,
    fp8_linear,
    fp8_moe_experts,
    nvfp4_linear,
    nvfp4_moe_experts,
)
CONTRACTS: dict[str, Contract] = {o.CONTRACT.torch_name: o.CONTRACT for o in OPERATORS}


def on_cuda(operator: str) -> Callable[..., Any]:
    """The operator's kernels as a function of CUDA tensors and attributes."""

    def call(*tensors: Tensor | None, **attributes: Any) -> Any:
        # Loaded at the first call: Triton is not needed where there is no GPU.
        launches = import_module(f"glm_trt.plugins.{operator}.launch").LAUNCHES
        kernels = vars(import_module(f"glm_trt.plugins.{operator}.kernel"))
        first = tensors[0]
        assert first is not None, "no operator's first input is optional"
        major, minor = torch.cuda.get_device_capability(first.device)
        inputs = [None if tensor is None else tensor.contiguous() for tensor in tensors]
        outputs = run(launches, kernels, inputs, attributes, target_for(10 * major + minor))
        return outputs if len(outputs) > 1 else outputs[0]

    return call


for _operator in OPERATORS:
    _name = _operator.CONTRACT.torch_name
    register(_operator.CONTRACT, _operator.reference, on_cuda(_name))


class RegisteredOperators(EagerOperators):
    """`torch.ops.glm_trt.*` in place of the eager definitions; same shapes and meaning."""

    def moe_routing(
        self, logits: Tensor, correction_bias: Tensor, **attributes: Any
    ) -> tuple[Tensor, Tensor]:
        """logits [T, E], correction_bias [E] → indices int32 [T, k], weights [T, k]."""
        attributes["norm_topk_prob"] = int(attributes["norm_topk_prob"])
        return torch.ops.glm_trt.moe_routing(logits, correction_bias, **attributes)

    def moe_experts(
        self, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        """x [T, hidden], indices, weights [T, k], stacked weights → [T, hidden]."""
        return torch.ops.glm_trt.moe_experts(x, indices, weights, gate_up, down)

    def indexer_topk(
        self, query: Tensor, keys: Tensor, weights: Tensor, past_lengths: Tensor, **attributes: Any
    ) -> Tensor:
        """query [B, S, H, D], keys [B, 1, C, D], weights [B, S, H] → positions [B, S, K]."""
        return torch.ops.glm_trt.indexer_topk(query, keys, weights, past_lengths, **attributes)

    def fp8_linear(self, *tensors: Tensor, **attributes: Any) -> Tensor:
        """x [T, in], weight int8 [out, in], scale [⌈out/128⌉, ⌈in/128⌉] → [T, out]."""
        return torch.ops.glm_trt.fp8_linear(*tensors, **attributes)

    def nvfp4_linear(self, *tensors: Tensor) -> Tensor:
        """x [T, in], weight int8 [out, in/2], scale int8 [out, in/16], [1] → [T, out]."""
        return torch.ops.glm_trt.nvfp4_linear(*tensors)

    def fp8_moe_experts(self, *tensors: Tensor) -> Tensor:
        """x [T, hidden], indices, weights [T, k], bytes and scales → [T, hidden]."""
        return torch.ops.glm_trt.fp8_moe_experts(*tensors)

    def nvfp4_moe_experts(self, *tensors: Tensor) -> Tensor:
        """x [T, hidden], indices, weights [T, k], bytes and both scales → [T, hidden]."""
        return torch.ops.glm_trt.nvfp4_moe_experts(*tensors)

    def sparse_mla(
        self, query: Tensor, cache: Tensor, indices: Tensor, **attributes: Any
    ) -> Tensor:
        """query [B, S, H, R+rope], cache [B, 1, C, R+rope] → latent [B, S, H, R]."""
        return torch.ops.glm_trt.sparse_mla(query, cache, indices, **attributes)

    def causal_mla(
        self, query: Tensor, cache: Tensor, past_lengths: Tensor, **attributes: Any
    ) -> Tensor:
        """query [B, S, H, R+rope], cache [B, 1, C, R+rope] → latent [B, S, H, R]."""
        return torch.ops.glm_trt.causal_mla(query, cache, past_lengths, **attributes)

    def linear_attention(self, *inputs: Any, **attributes: Any) -> tuple[Tensor, Tensor]:
        """query [B, S, Hq·dk], … → output [B, S, Hq·dv], present_state [B, H, dk, dv]."""
        return torch.ops.glm_trt.linear_attention(*inputs, **attributes)

    def causal_conv_with_state(
        self, x: Tensor, weight: Tensor, past_state: Tensor, *, activation: str = "silu"
    ) -> tuple[Tensor, Tensor]:
        """x [B, C, S], weight [C, 1, K], past_state [B, C, K-1] → y and the new state."""
        return torch.ops.glm_trt.causal_conv_with_state(
            x, weight, None, past_state, activation=activation
        )
