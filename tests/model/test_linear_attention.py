"""Gated DeltaNet against transformers' own `Qwen3NextGatedDeltaNet`, and the rules behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from glm_trt.model import linear_rules
from glm_trt.model.config import ModelConfig
from glm_trt.model.linear import Linears
from glm_trt.model.linear_attention import GatedDeltaNet, last_columns
from glm_trt.model.operators import EagerOperators
from glm_trt.model.quantization import Quantization
from glm_trt.model.states import State, layer_states

TOLERANCE = 1e-5
HIDDEN = 24
SIZES: dict[str, dict[str, int]] = {
    # key heads, value heads, d_k, d_v, conv width
    "grouped": dict(zip("kvdeK", (2, 6, 8, 12, 4), strict=True)),
    "equal_heads": dict(zip("kvdeK", (3, 3, 16, 10, 3), strict=True)),
    "short_conv": dict(zip("kvdeK", (1, 4, 5, 7, 2), strict=True)),
}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm().clamp(min=1e-30))


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        assert relative(found[name], tensor) < TOLERANCE, name


def fields(sizes: dict[str, int]) -> dict[str, int]:
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim",
             "conv_kernel_dim")  # fmt: skip
    return {f"linear_{name}": sizes[letter] for name, letter in zip(names, "kvdeK", strict=True)}


class Oracle:
    """transformers' module with random weights, one sequence at a time."""

    def __init__(self, sizes: dict[str, int]) -> None:
        torch.manual_seed(0)
        self.config = Qwen3NextConfig(
            hidden_size=HIDDEN, num_hidden_layers=1, layer_types=["linear_attention"],
            rms_norm_eps=1e-5, **fields(sizes),
        )  # fmt: skip
        self.module = Qwen3NextGatedDeltaNet(self.config, 0).eval()
        with torch.no_grad():
            for name, weight in self.module.named_parameters():
                if weight.ndim > 1:
                    weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
                elif name != "A_log":
                    weight.copy_(1 + 0.1 * torch.randn_like(weight))

    @torch.no_grad()
    def run(self, pieces: list[Tensor]) -> dict[str, Tensor]:
        """Outputs of the pieces [1, S, hidden] in turn, and the states after the last."""
        cache = DynamicCache(config=self.config)
        outputs = [self.module(x, cache_params=cache) for x in pieces]
        return {
            "output": torch.cat(outputs, dim=1),
            "conv_state": cache.get_conv_state(0, state_idx=0)[
                :, :, -(self.config.linear_conv_kernel_dim - 1) :
            ],
            "recurrent_state": cache.get_recurrent_state(0, state_idx=0),
        }


class Ours:
    """Our block with the oracle's weights."""

    def __init__(self, oracle: Oracle, dtype: torch.dtype = torch.float32) -> None:
        c = oracle.config
        data = {name: getattr(c, name) for name in fields(SIZES["grouped"])}
        self.config = make_config(**data)
        self.block = GatedDeltaNet(self.config, Linears(Quantization(), "", EagerOperators()))
        self.block.load_state_dict(oracle.module.state_dict(), strict=True)
        self.block.to(dtype)
        self.dtype = dtype

    def empty(self, batch: int) -> State:
        return {
            spec.name: torch.zeros(spec.shape(batch, 1), dtype=self.dtype)
            for spec in layer_states(self.config, 0)
        }

    @torch.no_grad()
    def run(
        self, pieces: list[Tensor], lengths: list[list[int]] | None = None
    ) -> dict[str, Tensor]:
        """As `Oracle.run`, for batches [B, S, hidden] whose rows have these many real tokens."""
        batch = pieces[0].shape[0]
        state, outputs = self.empty(batch), []
        for i, x in enumerate(pieces):
            real = torch.tensor(lengths[i] if lengths else [x.shape[1]] * batch)
            flat = x.to(self.dtype).reshape(-1, HIDDEN)
            output, state = self.block(flat, state, real, x.shape[1])
            outputs.append(output.reshape(x.shape))
        return {"output": torch.cat(outputs, dim=1), **state}


def make_config(**data: Any) -> ModelConfig:
    sizes = {name: 2 for name in (
        "vocab_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads",
        "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "max_position_embeddings",
    )}  # fmt: skip
    return ModelConfig.from_dict(
        sizes | data | {
            "model_type": "glm_moe_dsa", "hidden_size": HIDDEN, "num_hidden_layers": 1,
            "layer_types": ["linear_attention"], "first_k_dense_replace": 1, "n_group": 1,
            "topk_group": 1, "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-5,
            "norm_topk_prob": True, "rope_theta": 1e6,
        }
    )  # fmt: skip


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("sizes", SIZES)
def test_prefill_and_decode_equal_transformers(sizes: str, length: int) -> None:
    oracle = Oracle(SIZES[sizes])
    ours = Ours(oracle)
    x = torch.randn(1, length + 4, HIDDEN)
    close(ours.run([x]), oracle.run([x]))
    pieces = list(x.split([length, 1, 1, 1, 1], dim=1))
    close(ours.run(pieces), oracle.run(pieces))
    # Several tokens after a prefill: transformers continues its states in one way, by tokens.
    close(ours.run([x[:, :length], x[:, length:]]), oracle.run(pieces))


@pytest.mark.parametrize("sizes", SIZES)
def test_rows_of_different_lengths_equal_each_alone(sizes: str) -> None:
    """Two passes; padding holds large values, and a row may have no real token at all."""
    oracle = Oracle(SIZES[sizes])
    ours = Ours(oracle)
    lengths = [[70, 1, 33, 2, 5], [3, 4, 0, 1, 2]]
    x = [torch.randn(5, max(row), HIDDEN) for row in lengths]
    for piece, of in zip(x, lengths, strict=True):
        for row, real in enumerate(of):
            piece[row, real:] *= 100
    for passes in (1, 2):
        found = ours.run(x[:passes], lengths[:passes])
        for row in range(5):
            real = [p[row : row + 1, : of[row]] for p, of in zip(x, lengths, strict=True)][:passes]
            expected = oracle.run([piece for piece in real if piece.shape[1]])
            offsets = [0, x[0].shape[1]]
            parts = [
                found["output"][row, o : o + p.shape[1]]
                for o, p in zip(offsets, real, strict=False)
            ]
            alone = {name: tensor[row : row + 1] for name, tensor in found.items()}
            close(alone | {"output": torch.cat(parts)[None]}, expected)


def test_padding_alone_leaves_the_states_as_they_were() -> None:
    ours = Ours(Oracle(SIZES["grouped"]))
    x = torch.randn(2, 9, HIDDEN)
    before = ours.run([x])
    after = ours.run([x, 50 * torch.randn(2, 70, HIDDEN)], [[9, 9], [0, 0]])
    assert torch.equal(after["conv_state"], before["conv_state"])
    close(after, {"recurrent_state": before["recurrent_state"]})


def test_float64_is_the_same_function() -> None:
    oracle = Oracle(SIZES["grouped"])
    x = torch.randn(2, 100, HIDDEN)
    wide = Ours(oracle, torch.float64).run([x])
    by_token = Ours(oracle, torch.float64).run(list(x.split(1, dim=1)))
    for name, tensor in wide.items():
        assert tensor.dtype == torch.float64
        assert relative(by_token[name], tensor) < 1e-12
    close(Ours(oracle).run([x]), {name: tensor.float() for name, tensor in wide.items()})


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("rule", linear_rules.UPDATE_RULES)
@pytest.mark.parametrize(("q_heads", "kv_heads", "scale"), [(4, 4, 0.3), (6, 2, 0.0)])
def test_rules_follow_their_definition(
    rule: str, per_channel: bool, q_heads: int, kv_heads: int, scale: float
) -> None:
    """Token by token, head by head, as the ONNX operator's documentation writes them."""
    batch, length, d_k, d_v = 2, 130, 6, 5
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    q, k = random(batch, length, q_heads, d_k), random(batch, length, kv_heads, d_k)
    k = torch.nn.functional.normalize(k, dim=-1)
    v, state = random(batch, length, kv_heads, d_v), random(batch, kv_heads, d_k, d_v)
    g = -random(batch, length, kv_heads, d_k if per_channel else 1).abs() * 0.3
    beta = random(batch, length, kv_heads).sigmoid()
    found, present = EagerOperators().linear_attention(
        q.flatten(2), k.flatten(2), v.flatten(2), state, g.flatten(2), beta,
        q_num_heads=q_heads, kv_num_heads=kv_heads, update_rule=rule, scale=scale,
    )  # fmt: skip
    expected = torch.empty(batch, length, q_heads, d_v, dtype=torch.float64)
    for b in range(batch):
        for h in range(kv_heads):
            s = state[b, h].clone()
            for t in range(length):
                if "gated" in rule:
                    s = g[b, t, h].exp()[:, None] * s
                add = v[b, t, h]
                if "delta" in rule:
                    add = beta[b, t, h] * (add - s.T @ k[b, t, h])
                s = s + torch.outer(k[b, t, h], add)
                for i in range(h * q_heads // kv_heads, (h + 1) * q_heads // kv_heads):
                    expected[b, t, i] = (scale or d_k**-0.5) * s.T @ q[b, t, i]
            assert relative(present[b, h], s) < 1e-12
    assert relative(found, expected.flatten(2)) < 1e-12


def test_an_unknown_rule_is_refused() -> None:
    x = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="update_rule: expected one of"):
        EagerOperators().linear_attention(
            x, x, x, x[None], x, x, q_num_heads=1, kv_num_heads=1, update_rule="other", scale=1.0
        )


def test_last_columns() -> None:
    past, new = torch.arange(3.0).reshape(1, 1, 3), torch.arange(3.0, 8.0).reshape(1, 1, 5)
    for length in range(6):
        found = last_columns(past, new, torch.tensor([length]))
        assert found.flatten().tolist() == [length, length + 1, length + 2]
