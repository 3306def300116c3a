"""The feed-forward half of a layer: a dense SwiGLU MLP, or routed experts with shared ones.

Follows transformers' `GlmMoeDsaMLP`, `GlmMoeDsaTopkRouter`, `GlmMoeDsaExperts` and
`GlmMoeDsaMoE` (DeepSeek-V3's `noaux_tc` routing).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_trt.model.config import ModelConfig
from glm_trt.model.experts import EXPERT_MODULES, experts_precision, stacked_shapes
from glm_trt.model.linear import Linears, empty_parameter
from glm_trt.model.operators import EagerOperators, at_least_float32


class DenseMLP(nn.Module):
    """down(silu(gate x) · up x)."""

    def __init__(self, hidden: int, width: int, linears: Linears) -> None:
        super().__init__()
        self.gate_proj = linears("gate_proj", hidden, width)
        self.up_proj = linears("up_proj", hidden, width)
        self.down_proj = linears("down_proj", width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] → [T, hidden]."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Router(nn.Module):
    """Sigmoid scores, chosen with a correction bias, weighted without it. Always float32."""

    def __init__(self, config: ModelConfig, operators: EagerOperators) -> None:
        super().__init__()
        self.config, self.operators = config, operators
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.empty(config.n_routed_experts))

    def logits(self, x: Tensor) -> Tensor:
        """Router logits [T, E] of x [T, hidden]."""
        wide = at_least_float32(x)
        return F.linear(wide, self.weight.to(wide.dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, hidden] → expert indices int32 [T, k] and weights [T, k]."""
        logits = self.logits(x)
        return self.operators.moe_routing(
            logits,
            self.e_score_correction_bias.to(logits.dtype),
            top_k=self.config.num_experts_per_tok,
            n_group=self.config.n_group,
            topk_group=self.config.topk_group,
            norm_topk_prob=self.config.norm_topk_prob,
            routed_scaling_factor=self.config.routed_scaling_factor,
        )


class Experts(nn.Module):
    """The stacked weights of the routed experts; gate rows before up rows. Of what is stored narrow
    the bytes, and the scales under the same names with their suffixes behind.
    """

    def __init__(self, config: ModelConfig, layer: int, operators: EagerOperators) -> None:
        super().__init__()
        self.operators, self.names = operators, list[str]()
        self.precision = experts_precision(config, layer)
        for name in EXPERT_MODULES:
            for suffix, shape, dtype in stacked_shapes(config, name, self.precision):
                kind = torch.int8 if dtype == "int8" else None
                self.register_parameter(name + suffix, empty_parameter(shape, kind))
                self.names.append(name + suffix)

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """x [T, hidden], indices int32 [T, k], weights [T, k] → [T, hidden]."""
        stacked = [getattr(self, name) for name in self.names]
        if self.precision == "fp8":
            return self.operators.fp8_moe_experts(x, indices, weights, *stacked)
        if self.precision == "nvfp4":
            return self.operators.nvfp4_moe_experts(x, indices, weights, *stacked)
        return self.operators.moe_experts(x, indices, weights, *stacked)


class MoE(nn.Module):
    """Routed experts plus the shared experts, which are one dense MLP of their summed width."""

    def __init__(self, config: ModelConfig, layer: int, linears: Linears) -> None:
        super().__init__()
        self.gate = Router(config, linears.operators)
        self.experts = Experts(config, layer, linears.operators)
        width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = DenseMLP(config.hidden_size, width, linears.within("shared_experts"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, hidden] → output [T, hidden] and the chosen experts int32 [T, k]."""
        indices, weights = self.gate(x)
        return self.experts(x, indices, weights) + self.shared_experts(x), indices
