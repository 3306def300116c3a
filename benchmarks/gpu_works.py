"""What the GPU scripts time: GLM-5.1's operators at its sizes, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_trt.model.operators import EagerOperators
from glm_trt.plugins.operators import RegisteredOperators

HIDDEN, INNER, EXPERTS, TOP_K = 6144, 2048, 256, 8
ROUTING = dict(top_k=TOP_K, n_group=1, topk_group=1, norm_topk_prob=True,
               routed_scaling_factor=2.5)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One thing to time: a function of an operator set, with the bytes and products it needs.

    `eager`, where the eager operators have no such function: what it is compared with.
    """

    name: str
    call: Callable[[EagerOperators], Any]
    bytes: float
    products: float = 0.0
    eager: Callable[[], Any] | None = None

    def ours(self) -> Any:
        """The kernels' result."""
        return self.call(RegisteredOperators())

    def theirs(self) -> Any:
        """The result of plain PyTorch."""
        return self.call(EagerOperators()) if self.eager is None else self.eager()


def works(dtype: torch.dtype) -> list[Work]:
    """GLM-5.1's operators at its dimensions."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    found = []
    bias = torch.zeros(EXPERTS, device="cuda")
    for tokens in (1, 64, 8192):
        logits = torch.randn(tokens, EXPERTS, device="cuda")
        found.append(Work(f"routing, {tokens} tokens", lambda o, x=logits:
                          o.moe_routing(x, bias, **ROUTING), tokens * EXPERTS * 4))  # fmt: skip
    gate_up, down = random(EXPERTS, 2 * INNER, HIDDEN) / 80, random(EXPERTS, HIDDEN, INNER) / 45
    for tokens in (1, 8, 64, 8192):
        x = random(tokens, HIDDEN)
        indices = torch.rand(tokens, EXPERTS, device="cuda").topk(TOP_K).indices.int()
        weights = torch.rand(tokens, TOP_K, device="cuda")
        hit = int(indices.unique().numel())
        found.append(Work(
            f"experts, {tokens} tokens",
            lambda o, x=x, i=indices, w=weights: o.moe_experts(x, i, w, gate_up, down),
            hit * 3 * HIDDEN * INNER * dtype.itemsize, 6.0 * tokens * TOP_K * HIDDEN * INNER,
        ))  # fmt: skip
    for batch, context in ((1, 8192), (1, 131072), (8, 131072)):
        query, keys = random(batch, 1, 32, 128), random(batch, 1, context, 128)
        head_weights = torch.rand(batch, 1, 32, device="cuda")
        past = torch.full((batch,), context - 1, device="cuda")
        found.append(Work(
            f"indexer, {batch} x {context}",
            lambda o, q=query, k=keys, w=head_weights, p=past: o.indexer_topk(
                q, k, w, p, index_topk=2048, scale=128**-0.5),
            batch * context * 128 * dtype.itemsize,
        ))  # fmt: skip
        cache = random(batch, 1, context, 576)
        chosen = torch.rand(batch, 1, context, device="cuda").topk(2048).indices.sort().values.int()
        heads = random(batch, 1, 64, 576)
        found.append(Work(
            f"attention, {batch} x {context}",
            lambda o, q=heads, c=cache, i=chosen: o.sparse_mla(
                q, c, i, scale=1 / 16, value_width=512),
            batch * 2048 * 576 * dtype.itemsize,
        ))  # fmt: skip
        found.append(Work(
            f"causal, {batch} x {context}",
            lambda o, q=heads, c=cache, p=past: o.causal_mla(
                q, c, p, scale=1 / 16, value_width=512),
            batch * context * 576 * dtype.itemsize, 2.0 * batch * context * 64 * (576 + 512),
        ))  # fmt: skip
    for length in (64, 512, 2048):
        context = 8192
        past = torch.full((1,), context - length, device="cuda")
        query, keys = random(1, length, 32, 128), random(1, 1, context, 128)
        head_weights = torch.rand(1, length, 32, device="cuda")
        found.append(Work(
            f"indexer, {length} of {context}",
            lambda o, q=query, k=keys, w=head_weights, p=past: o.indexer_topk(
                q, k, w, p, index_topk=2048, scale=128**-0.5),
            context * 128 * dtype.itemsize, 2.0 * length * context * 32 * 128,
        ))  # fmt: skip
        cache, heads = random(1, 1, context, 576), random(1, length, 64, 576)
        seen = torch.rand(1, length, context - length, device="cuda")
        chosen = seen.topk(2048).indices.sort().values.int()
        found.append(Work(
            f"attention, {length} of {context}",
            lambda o, q=heads, c=cache, i=chosen: o.sparse_mla(
                q, c, i, scale=1 / 16, value_width=512),
            context * 576 * dtype.itemsize, 2.0 * length * 2048 * 64 * (576 + 512),
        ))  # fmt: skip
        found.append(Work(
            f"causal, {length} of {context}",
            lambda o, q=heads, c=cache, p=past: o.causal_mla(
                q, c, p, scale=1 / 16, value_width=512),
            context * 576 * dtype.itemsize,
            2.0 * length * (context - length / 2) * 64 * (576 + 512),
        ))  # fmt: skip
    return found + linear_works(random) + quantized_works("cuda", dtype)


def linear_works(random: Callable[..., Tensor]) -> list[Work]:
    """Linear attention and its convolution, 64 heads of 128 and 16 key heads."""
    found = []
    for batch, length in ((1, 1), (64, 1), (1, 1024), (1, 8192)):
        query, key, value = (random(batch, length, 64 * 128) / 12 for _ in "qkv")
        state = torch.randn(batch, 64, 128, 128, device="cuda")
        decay = -torch.rand(batch, length, 64, device="cuda").to(query.dtype)
        beta = torch.rand(batch, length, 64, device="cuda").to(query.dtype)
        found.append(Work(
            f"linear, {batch} x {length}",
            lambda o, t=(query, key, value, state, decay, beta): o.linear_attention(
                *t, q_num_heads=64, kv_num_heads=64, update_rule="gated_delta", scale=128**-0.5),
            2 * state.nbytes + 4 * query.nbytes, 6.0 * batch * length * 64 * 128 * 128,
        ))  # fmt: skip
        x, kernel = random(batch, 12288, length), random(12288, 1, 4)
        columns = random(batch, 12288, 3)
        found.append(Work(
            f"convolution, {batch} x {length}",
            lambda o, t=(x, kernel, None, columns): o.causal_conv_with_state(*t, activation="silu"),
            2 * x.nbytes + 2 * columns.nbytes,
        ))  # fmt: skip
    return found


def dense_fp8(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """codes int8 [out, in], scale float32 [⌈out/128⌉, ⌈in/128⌉] → [out, in] on their device."""
    rows, columns = codes.shape
    wide = scale.to(dtype).repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return codes.view(torch.float8_e4m3fn).to(dtype) * wide


def dense_nvfp4(codes: Tensor, scale: Tensor, overall: Tensor, dtype: torch.dtype) -> Tensor:
    """codes int8 [out, in/2], scale int8 [out, in/16], overall [] → [out, in] on their device."""
    sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=dtype, device=codes.device)
    pairs = torch.stack([codes & 15, (codes >> 4) & 15], -1).flatten(-2).long()
    values = torch.where(pairs > 7, -sizes[pairs & 7], sizes[pairs & 7])
    factors = (scale.view(torch.float8_e4m3fn).float() * overall).to(dtype)
    return values * factors.repeat_interleave(16, 1)


def dense_tokens(x: Tensor) -> Tensor:
    """x [T, in] as e4m3 with a scale for each 128, in x's dtype again."""
    groups = F.pad(x, (0, -x.shape[1] % 128)).float().unflatten(1, (-1, 128))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448
    rounded = (groups / scale).to(torch.float8_e4m3fn).float() * scale
    return rounded.flatten(1)[:, : x.shape[1]].to(x.dtype)


def eager_experts(
    x: Tensor, indices: Tensor, weights: Tensor, dense: Callable[[int], tuple[Tensor, Tensor]]
) -> Tensor:
    """x [T, hidden] → [T, hidden]; `dense` gives an expert's gate and up [2I, hidden], and down."""
    y = torch.zeros_like(x, dtype=torch.float32)
    for expert in indices.unique().tolist():
        token, slot = torch.where(indices == expert)
        gate_up, down = dense(expert)
        gate, up = F.linear(x[token], gate_up).chunk(2, -1)
        part = F.linear(F.silu(gate) * up, down).float()
        y.index_add_(0, token, part * weights[token, slot].unsqueeze(1))
    return y.to(x.dtype)


def quantized_works(
    device: str,
    dtype: torch.dtype,
    attention: tuple[int, int] = (HIDDEN, 64 * 256),
    experts: tuple[int, int, int] = (EXPERTS, HIDDEN, INNER),
    tokens: tuple[int, ...] = (1, 8, 64, 8192),
) -> list[Work]:
    """The operators of FP8 and NVFP4 weights: `o_proj` [out, in], and a layer's experts."""
    ops = torch.ops.glm_trt
    (rows, columns), (count, hidden, inner) = attention, experts
    top_k = min(TOP_K, count)

    def fp8(*shape: int) -> tuple[Tensor, Tensor]:
        codes = torch.randint(-128, 127, shape, dtype=torch.int8, device=device)
        codes.masked_fill_(codes == -1, 0)  # 127 and -1 are NaN
        blocks = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
        return codes, (torch.rand(blocks, device=device) + 0.5) / (150 * shape[-1] ** 0.5)

    def nvfp4(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
        codes = torch.randint(-128, 128, (*shape[:-1], shape[-1] // 2), dtype=torch.int8,
                              device=device)  # fmt: skip
        scale = torch.randint(
            0x68, 0x7D, (*shape[:-1], shape[-1] // 16), dtype=torch.int8, device=device
        )  # fmt: skip  64 to 416
        return codes, scale, (torch.rand(shape[:-2], device=device) + 0.5) / (
            600 * shape[-1] ** 0.5)  # fmt: skip

    w8, s8 = fp8(rows, columns)
    w4, s4, g4 = nvfp4(rows, columns)
    up8, up_s8 = fp8(count, 2, inner, hidden)
    down8, down_s8 = fp8(count, hidden, inner)
    up4, up_s4, up_g4 = nvfp4(count, 2, inner, hidden)
    down4, down_s4, down_g4 = nvfp4(count, hidden, inner)
    all8 = (up8.flatten(1, 2), up_s8, down8, down_s8)
    all4 = (up4.flatten(1, 2), up_s4.flatten(1, 2), up_g4, down4, down_s4, down_g4)

    def dense8(e: int) -> tuple[Tensor, Tensor]:
        both = torch.cat([dense_fp8(up8[e, i], up_s8[e, i], dtype) for i in (0, 1)])
        return both, dense_fp8(down8[e], down_s8[e], dtype)

    def dense4(e: int) -> tuple[Tensor, Tensor]:
        both = [dense_nvfp4(up4[e, i], up_s4[e, i], up_g4[e, i], dtype) for i in (0, 1)]
        return torch.cat(both), dense_nvfp4(down4[e], down_s4[e], down_g4[e], dtype)

    found = []
    for t in tokens:
        x = torch.randn(t, columns, device=device).to(dtype)
        moved = (t * (rows + columns)) * dtype.itemsize
        bytes8, bytes4 = (sum(a.nbytes for a in part) + moved for part in ((w8, s8), (w4, s4)))
        work = 2.0 * t * rows * columns
        found += [
            Work(f"fp8, {t} tokens", lambda _, x=x: ops.fp8_linear(
                x, w8, s8, quantize_activations=0), bytes8, work,
                lambda x=x: F.linear(x, dense_fp8(w8, s8, dtype))),
            Work(f"fp8, quantised, {t} tokens", lambda _, x=x: ops.fp8_linear(
                x, w8, s8, quantize_activations=1), bytes8, work,
                lambda x=x: F.linear(dense_tokens(x), dense_fp8(w8, s8, dtype))),
            Work(f"nvfp4, {t} tokens", lambda _, x=x: ops.nvfp4_linear(x, w4, s4, g4.view(1)),
                 bytes4, work, lambda x=x: F.linear(x, dense_nvfp4(w4, s4, g4, dtype))),
        ]  # fmt: skip
        x = torch.randn(t, hidden, device=device).to(dtype)
        indices = torch.rand(t, count, device=device).topk(top_k).indices.int()
        weights = torch.rand(t, top_k, device=device)
        hit, moved = int(indices.unique().numel()), 2 * t * hidden * dtype.itemsize
        bytes8, bytes4 = (
            hit * sum(a.nbytes for a in part) / count + moved for part in (all8, all4)
        )
        work, routed = 6.0 * t * top_k * hidden * inner, (x, indices, weights)
        found += [
            Work(f"fp8 experts, {t} tokens", lambda _, r=routed: ops.fp8_moe_experts(*r, *all8),
                 bytes8, work, lambda r=routed: eager_experts(*r, dense8)),
            Work(f"nvfp4 experts, {t} tokens", lambda _, r=routed: ops.nvfp4_moe_experts(*r, *all4),
                 bytes4, work, lambda r=routed: eager_experts(*r, dense4)),
        ]  # fmt: skip
    return found
