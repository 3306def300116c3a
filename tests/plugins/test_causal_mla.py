"""CausalMla beyond its shared cases: against torch's attention, where a query's view ends, splits.

`test_kernels.py` runs every case against the reference.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
import torch.nn.functional as F
from plugin_harness import by_turns
from test_attention_kernels import DTYPES, Fresh, guarded
from torch import Tensor

from glm_trt.model.operators import EagerOperators, positions_of
from glm_trt.plugins.causal_mla import kernel, launch
from glm_trt.plugins.causal_mla.contract import CONTRACT
from glm_trt.plugins.common.expressions import evaluate
from glm_trt.plugins.common.run import run
from glm_trt.plugins.common.selection import TARGETS


def attend(
    inputs: list[Tensor], attributes: dict[str, Any], target: str = "sm90"
) -> tuple[Tensor, Fresh]:
    """The kernels' result, and what they allocated."""
    allocate = Fresh()
    inputs = [guarded(tensor) for tensor in inputs]
    (found,) = run(launch.LAUNCHES, vars(kernel), inputs, attributes, target, allocate=allocate)
    allocate.check()
    return found, allocate


def torchs_own(inputs: list[Tensor], attributes: dict[str, Any]) -> Tensor:
    """The same by `scaled_dot_product_attention` in float64; nothing in the cache may be NaN."""
    query, cache, past_lengths = inputs
    keys = cache.double().expand(-1, query.shape[2], -1, -1)
    positions = positions_of(past_lengths, query.shape[1])[:, None, :, None]
    latent = F.scaled_dot_product_attention(
        query.double().transpose(1, 2), keys, keys[..., : attributes["value_width"]],
        attn_mask=torch.arange(cache.shape[2]) <= positions, scale=attributes["scale"],
    )  # fmt: skip
    return latent.transpose(1, 2)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


# length, heads, past lengths: tokens in parts of a block, of a block, of several; split or not
SHAPES = [(5, 6, [3, 70]), (2, 64, [90, 0]), (1, 70, [100, 31]), (40, 5, [55, 60])]


@pytest.mark.parametrize(
    ("shape", "target", "dtype"), by_turns(SHAPES, tuple(itertools.product(TARGETS, DTYPES)))
)
def test_attention_is_torchs_own(shape: Any, dtype: torch.dtype, target: str) -> None:
    length, heads, past = shape
    generator = torch.Generator().manual_seed(4)
    sizes = (2, length, heads, 28), (2, 1, 110, 28)
    query, cache = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    inputs, attributes = [query, cache, torch.tensor(past)], {"scale": 0.3, "value_width": 20}
    found, _ = attend(inputs, attributes, target)
    tolerance = CONTRACT.tolerance[str(dtype).removeprefix("torch.")]
    assert error(found, torchs_own(inputs, attributes)) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_eager_attention_is_torchs_own(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    query, cache = (torch.randn(s, generator=generator) for s in ((2, 5, 3, 28), (2, 1, 40, 28)))
    inputs, attributes = [query, cache, torch.tensor([9, 0])], {"scale": 0.3, "value_width": 20}
    found = EagerOperators().causal_mla(
        query.to(dtype), cache.to(dtype), inputs[2], scale=0.3, value_width=20
    )
    assert found.dtype == dtype
    assert error(found, torchs_own(inputs, attributes)) < 8 * torch.finfo(dtype).eps


def positions_mean(length: int, past: list[int], capacity: int, target: str) -> Tensor:
    """Latent [B, S] of equal weights over entries that are their positions: p / 2 at position p."""
    cache = torch.zeros(len(past), 1, capacity, 16)
    cache[..., 0] = torch.arange(capacity)
    for b, seen in enumerate(past):
        cache[b, :, seen + length :] = float("nan")
    inputs = [torch.zeros(len(past), length, 1, 16), cache, torch.tensor(past)]
    return attend(inputs, {"scale": 1.0, "value_width": 16}, target)[0][:, :, 0, 0]


@pytest.mark.parametrize("target", ["sm80", "sm90"])
def test_each_query_sees_up_to_its_position(target: str) -> None:
    """Every position of a prefill, and decode at the ends of blocks and shares, split."""
    found = positions_mean(140, [0, 7], 150, target)
    wanted = positions_of(torch.tensor([0, 7]), 140) / 2
    assert torch.allclose(found, wanted, rtol=1e-6)
    past = [0, 1, 14, 15, 16, 30, 31, 32, 62, 63, 64, 126, 127, 128, 254, 255, 256, 299]
    found = positions_mean(1, past, 300, target)
    assert torch.allclose(found[:, 0], torch.tensor(past) / 2, rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("capacity", [60, 150])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokens_after_a_query_do_not_matter(
    dtype: torch.dtype, capacity: int, value: float
) -> None:
    """Not those of the same pass either, whose rows are in the same program; split or not."""
    generator = torch.Generator().manual_seed(6)
    sizes = (1, 7, 3, 24), (1, 1, capacity, 24)
    query, cache = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    inputs, attributes = [query, cache, torch.tensor([36])], {"scale": 0.2, "value_width": 16}
    before, _ = attend(inputs, attributes)
    cache[:, :, 40:] = value  # what the last three of the seven tokens wrote
    after, _ = attend(inputs, attributes)
    assert torch.equal(after[:, :4], before[:, :4])
    assert bool(after[:, 4:].isnan().all())


def test_empty_shares_cost_nothing() -> None:
    """The capacity makes 100 splits; 70 visible entries fill two, and no other is written."""
    inputs = [torch.ones(1, 1, 2, 16), torch.ones(1, 1, 6400, 16), torch.tensor([69])]
    found, allocate = attend(inputs, {"scale": 1.0, "value_width": 16})
    assert torch.allclose(found, torch.ones(1, 1, 2, 16))
    parts, stats = (buffer for _, buffer in allocate.made[1:])
    parts, stats = parts.view(100, 2, 16), stats.view(100, 2, 2)
    assert parts[:2, 0, 0].tolist() == [64.0, 6.0]
    assert bool(parts[2:].isnan().all())
    assert bool((stats[2:, :, 0] == float("-inf")).all() and (stats[2:, :, 1] == 0).all())


@pytest.mark.parametrize(
    ("batch", "length", "capacity", "splits"),
    [
        (1, 1, 131072, 128), (8, 1, 131072, 16), (1, 1, 2048, 32), (1, 1, 64, 1),
        (1, 4, 131072, 32), (64, 1, 131072, 2), (1, 128, 131072, 1), (1, 8192, 8192, 1),
    ],
)  # fmt: skip
def test_splits_fill_a_gpu(batch: int, length: int, capacity: int, splits: int) -> None:
    """At GLM-5.1's dimensions, where every program has the rows of one token."""
    sizes = {"B": batch, "S": length, "H": 64, "C": capacity}
    assert evaluate(launch.SPLITS, sizes) == splits
    assert all(evaluate(launch.UNMIXED, sizes | {"BLOCK_M": rows}) for rows in (16, 32, 64))
