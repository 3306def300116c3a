"""Gated DeltaNet: linear attention with a delta rule, its state a matrix a head.

Follows transformers' `Qwen3NextGatedDeltaNet` in names, shapes and layouts. Letters in shapes:
B batch, S new tokens, T = B·S, C channels of the convolution (queries, keys, values).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_trt.model.attention import RMSNorm
from glm_trt.model.config import ModelConfig
from glm_trt.model.linear import Linears
from glm_trt.model.operators import at_least_float32
from glm_trt.model.states import State, linear_channels

L2_NORM_EPS = 1e-6


class Conv1d(nn.Module):
    """The weight [C, 1, K] of the depthwise convolution, under its name in the checkpoint."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))


class GatedDeltaNet(nn.Module):
    """S ← e^g S + β k (v − e^g Sᵀ k)ᵀ, o = Sᵀ q, for each value head."""

    def __init__(self, config: ModelConfig, linears: Linears) -> None:
        super().__init__()
        self.key_heads = config.linear_num_key_heads
        self.value_heads = config.linear_num_value_heads
        self.key_dim, self.value_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.group = self.value_heads // self.key_heads  # value heads of a key head
        self.operators = linears.operators
        hidden = config.hidden_size
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        self.widths = [keys, keys, values]
        self.in_proj_qkvz = linears("in_proj_qkvz", hidden, 2 * keys + 2 * values)
        self.in_proj_ba = nn.Linear(hidden, 2 * self.value_heads, bias=False)
        self.conv1d = Conv1d(linear_channels(config), config.linear_conv_kernel_dim)
        self.A_log = nn.Parameter(torch.empty(self.value_heads))
        self.dt_bias = nn.Parameter(torch.empty(self.value_heads))
        self.norm = RMSNorm(self.value_dim, config.rms_norm_eps, linears.operators)
        self.out_proj = linears("out_proj", values, hidden)

    def forward(
        self, x: Tensor, state: State, lengths: Tensor, length: int
    ) -> tuple[Tensor, State]:
        """x [T, hidden] → output [T, hidden] and the new state.

        Parameters
        ----------
        state : conv_state [B, C, K−1], recurrent_state [B, H, d_k, d_v].
        lengths : int64 [B], how many of a row's `length` = S tokens are real. The others stand
            behind them, leave the states alone, and their output means nothing.
        """
        mixed, z = self._project(x, lengths.shape[0], length)
        decay, beta = self._gates(x, lengths, length)
        convolved, _ = self.operators.causal_conv_with_state(
            mixed, self.conv1d.weight, None, state["conv_state"], activation="silu"
        )
        query, key, value = convolved.transpose(1, 2).split(self.widths, dim=-1)
        attended, recurrent_state = self.operators.linear_attention(
            self._normalised(query),
            self._normalised(key),
            value,
            state["recurrent_state"],
            decay,
            beta,
            q_num_heads=self.value_heads,
            kv_num_heads=self.value_heads,
            update_rule="gated_delta",
            scale=self.key_dim**-0.5,
        )
        normed = at_least_float32(self.norm(attended.reshape(-1, self.value_dim)))
        gated = (normed * F.silu(at_least_float32(z.reshape(-1, self.value_dim)))).to(x.dtype)
        return self.out_proj(gated.reshape(x.shape[0], -1)), {
            "conv_state": last_columns(state["conv_state"], mixed, lengths),
            "recurrent_state": recurrent_state,
        }

    def _project(self, x: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """What is convolved [B, C, S], and the output gate z [T, key heads, ·], of x [T, hidden].

        Rows of the weight are grouped by key head: [q, k, its value heads, their z].
        """
        value = self.group * self.value_dim
        parts = [self.key_dim, self.key_dim, value, value]
        by_head = self.in_proj_qkvz(x).reshape(-1, self.key_heads, sum(parts))
        query, key, values, z = by_head.split(parts, dim=-1)
        mixed = torch.cat([part.flatten(1) for part in (query, key, values)], dim=-1)
        return mixed.reshape(batch, length, -1).transpose(1, 2), z

    def _gates(self, x: Tensor, lengths: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Decay (log-space) and update rate [B, S, H]; both 0 for padding, which changes nothing.

        Computed in float32 and rounded to x's dtype.
        """
        by_head = at_least_float32(self.in_proj_ba(x)).reshape(-1, self.key_heads, 2 * self.group)
        b, a = (part.reshape(-1, length, self.value_heads) for part in by_head.chunk(2, dim=-1))
        rate, bias = self.A_log.to(a.dtype).exp(), self.dt_bias.to(a.dtype)
        decay, beta = -rate * F.softplus(a + bias), b.sigmoid()
        real = torch.arange(length, device=x.device) < lengths.unsqueeze(1)  # [B, S]
        real = real.unsqueeze(2)
        return torch.where(real, decay, 0.0).to(x.dtype), torch.where(real, beta, 0.0).to(x.dtype)

    def _normalised(self, x: Tensor) -> Tensor:
        """Each head at length 1, repeated to its value heads: [B, S, keys] → [B, S, H·d_k]."""
        batch, length, _ = x.shape
        heads = at_least_float32(x.reshape(batch, length, self.key_heads, 1, self.key_dim))
        normed = heads * torch.rsqrt(heads.pow(2).sum(-1, keepdim=True) + L2_NORM_EPS)
        repeated = normed.to(x.dtype).expand(-1, -1, -1, self.group, -1)
        return repeated.reshape(batch, length, -1)


def last_columns(past: Tensor, new: Tensor, lengths: Tensor) -> Tensor:
    """The columns of [past ‖ the first `lengths` of new] that a convolution reads next.

    past [B, C, K−1], new [B, C, S], lengths int64 [B] → [B, C, K−1]. Only those are read: a copy
    of the whole would cost as much as the convolution.
    """
    batch, channels, width = past.shape
    columns = lengths.unsqueeze(1) + torch.arange(width, device=past.device)  # [B, K−1]
    columns = columns.unsqueeze(1).expand(batch, channels, width)
    from_past = past.gather(2, columns.clamp(max=width - 1))
    from_new = new.gather(2, (columns - width).clamp(min=0))
    return torch.where(columns < width, from_past, from_new)
