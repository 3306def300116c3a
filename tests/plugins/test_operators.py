"""Each operator's reference against the model's own definition and its own contract."""

from __future__ import annotations

from functools import partial
from typing import Any

import onnx.defs
import pytest
import torch
from torch import Tensor

from glm_trt.model.operators import EagerOperators
from glm_trt.plugins.common.contract import DOMAIN, STANDARD, VERSION
from glm_trt.plugins.common.torch_operators import fake
from glm_trt.plugins.folders import CONTRACTS, part_of
from glm_trt.plugins.operators import RegisteredOperators

ROUTING = dict(norm_topk_prob=True, routed_scaling_factor=2.5)


def routing(tokens: int, experts: int, tied: bool = False, **attributes: Any) -> Any:
    logits, bias = torch.randn(tokens, experts), torch.randn(experts) * 0.1
    if tied:  # scores of exactly 0, 1/2 and 1, which every sigmoid agrees on, and exact sums
        logits, bias = logits.round().clamp(-1, 1) * 200, torch.randint(0, 3, (experts,)) / 4
    return (logits, bias), {**ROUTING, **attributes}


def experts(tokens: int, k: int, spread: int = 6) -> Any:
    indices = torch.stack([torch.randperm(spread)[:k] for _ in range(tokens)] or [torch.empty(k)])
    indices = indices[:tokens].int()
    return (
        torch.randn(tokens, 10), indices, torch.rand(tokens, k),
        torch.randn(6, 14, 10) / 3, torch.randn(6, 10, 7) / 3,
    ), {}  # fmt: skip


def indexer(
    batch: int, length: int, capacity: int, topk: int, past: int, tied: bool = False
) -> Any:
    query, keys = torch.randn(batch, length, 3, 5), torch.randn(batch, 1, capacity, 5)
    weights = torch.randn(batch, length, 3)
    if tied:
        query, keys, weights = query.round(), keys.round(), weights.round()
    return (query, keys, weights, torch.full((batch,), past)), dict(index_topk=topk, scale=0.5)


def attention(batch: int, length: int, capacity: int, count: int) -> Any:
    indices = torch.stack([torch.randperm(capacity)[:count] for _ in range(batch * length)])
    indices[:, 1:][torch.rand(batch * length, count - 1) < 0.3] = -1
    indices = indices.reshape(batch, length, count).int()
    query, cache = torch.randn(batch, length, 3, 12), torch.randn(batch, 1, capacity, 12)
    return (query, cache, indices), dict(scale=0.3, value_width=8)


def causal(batch: int, length: int, capacity: int, past: list[int]) -> Any:
    query, cache = torch.randn(batch, length, 3, 12), torch.randn(batch, 1, capacity, 12)
    for b, seen in enumerate(past):  # what nobody sees must not matter
        cache[b, :, seen + length :] = float("nan")
    return (query, cache, torch.tensor(past)), dict(scale=0.3, value_width=8)


CASES: list[tuple[str, Any]] = [
    ("moe_routing", lambda: routing(9, 8, top_k=3, n_group=1, topk_group=1)),
    ("moe_routing", lambda: routing(40, 12, top_k=4, n_group=4, topk_group=2)),
    ("moe_routing", lambda: routing(60, 12, tied=True, top_k=4, n_group=4, topk_group=2)),
    ("moe_routing", lambda: routing(5, 7, top_k=7, n_group=1, topk_group=1, norm_topk_prob=False)),
    ("moe_routing", lambda: routing(0, 8, top_k=2, n_group=1, topk_group=1)),
    ("moe_experts", lambda: experts(1, 1)),
    ("moe_experts", lambda: experts(33, 4)),
    ("moe_experts", lambda: experts(8, 1, spread=1)),
    ("moe_experts", lambda: experts(0, 2)),
    ("indexer_topk", lambda: indexer(2, 7, 20, 5, 9)),
    ("indexer_topk", lambda: indexer(1, 30, 30, 64, 0)),
    ("indexer_topk", lambda: indexer(2, 25, 40, 6, 15, tied=True)),
    ("indexer_topk", lambda: indexer(1, 1, 1, 1, 0)),
    ("sparse_mla", lambda: attention(2, 5, 20, 6)),
    ("sparse_mla", lambda: attention(1, 1, 3, 1)),
    ("causal_mla", lambda: causal(3, 5, 20, [0, 7, 15])),
    ("causal_mla", lambda: causal(1, 1, 300, [3])),
    ("causal_mla", lambda: causal(1, 0, 4, [2])),
]


def of_folder(name: str, number: int) -> Any:
    """A case of an operator of ours that has none above: that of its folder."""
    case = part_of(name, "cases").CASES[number]
    return case.make(torch.Generator().manual_seed(number), torch.float32), dict(case.attributes)


CASES += [
    (name, partial(of_folder, name, number))
    for name in sorted({*CONTRACTS} - {name for name, _ in CASES})
    if CONTRACTS[name].domain == DOMAIN  # those of ONNX are compared with ONNX's own
    for number in range(min(len(part_of(name, "cases").CASES), 3))
]


def as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "make"), CASES)
def test_reference_equals_the_models_definition(name: str, make: Any, seed: int) -> None:
    torch.manual_seed(seed)
    inputs, attributes = make()
    found = as_tuple(getattr(RegisteredOperators(), name)(*inputs, **attributes))
    expected = as_tuple(getattr(EagerOperators(), name)(*inputs, **attributes))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if ours.dtype == torch.int32:
            assert torch.equal(ours, theirs)
        elif ours.numel():
            error = (ours - theirs).norm() / theirs.norm()
            assert error < CONTRACTS[name].tolerance["float32"]


@pytest.mark.parametrize(("name", "make"), CASES)
def test_fake_has_the_reference_outputs_form(name: str, make: Any) -> None:
    inputs, attributes = make()
    if "norm_topk_prob" in attributes:
        attributes["norm_topk_prob"] = int(attributes["norm_topk_prob"])
    real = as_tuple(getattr(torch.ops.glm_trt, name)(*inputs, **attributes))
    faked = as_tuple(fake(CONTRACTS[name], *inputs, **attributes))
    assert [(t.shape, t.dtype) for t in faked] == [(t.shape, t.dtype) for t in real]


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=lambda c: c.name)
def test_views_of_the_contract_agree(contract: Any) -> None:
    version = 27 if contract.domain == STANDARD else VERSION
    schema = onnx.defs.get_schema(contract.name, version, contract.domain)
    torch_schema = getattr(torch.ops.glm_trt, contract.torch_name).default._schema
    names = [port.name for port in contract.inputs]
    assert [port.name for port in schema.inputs] == names
    # The chunk size of LinearAttention is a hint that changes no result.
    assert set(schema.attributes) - {"chunk_size"} == set(contract.attributes)
    arguments = [a.name for a in torch_schema.arguments]
    assert arguments == names + list(contract.attributes)
    assert len(torch_schema.returns) == len(schema.outputs) == len(contract.outputs)
