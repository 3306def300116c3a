"""The eager model against transformers' own `GlmMoeDsaForCausalLM`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SHAPES, make_oracle, reload_oracle, save

from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.weights import load_model
from glm_trt.model.glm_moe_dsa import GlmMoeDsa
from glm_trt.model.operators import EagerOperators

TOLERANCE = 2e-5


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm())


def logits_of(model: GlmMoeDsa, ids: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    """Logits [B, S, vocab] when `ids` are fed in pieces of these lengths."""
    batch, length = ids.shape
    states, past, outputs = model.empty_states(batch, length), 0, []
    for chunk in chunks:
        piece = ids[:, past : past + chunk]
        out, states = model(piece, states, torch.full((batch,), past))
        outputs.append(out)
        past += chunk
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("absorbed", [False, True], ids=["expanded", "absorbed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(tmp_path: Path, shape: str, absorbed: bool) -> None:
    oracle = make_oracle(**SHAPES[shape])
    checkpoint = Checkpoint.open(save(oracle, tmp_path))
    model = load_model(checkpoint, absorbed=absorbed)
    for batch, length in ((1, 1), (2, 7), (3, 33), (1, 300)):
        ids = torch.randint(0, oracle.config.vocab_size, (batch, length))
        with torch.no_grad():
            expected = oracle(ids, use_cache=False).logits
        assert relative(logits_of(model, ids, [length]), expected) < TOLERANCE, (batch, length)


class TieCounter(EagerOperators):
    """Notes the first query of each sequence whose selection an exact tie decides."""

    def __init__(self) -> None:
        self.ties, self.first = 0, torch.full((1,), 1 << 30)

    def indexer_topk(
        self, query: Any, keys: Any, weights: Any, past_lengths: Any, **options: Any
    ) -> Any:
        scores = self.indexer_scores(query, keys, weights, options["scale"])
        count, length = options["index_topk"], query.shape[1]
        for position in range(count, length):
            ordered = scores[:, position, : position + 1].sort(descending=True).values
            tied = ordered[:, count - 1] == ordered[:, count]
            self.ties += int(tied.sum())
            self.first = torch.where(tied, self.first.clamp(max=position), self.first)
        return super().indexer_topk(query, keys, weights, past_lengths, **options)


@pytest.mark.parametrize("heads", [1, 2, 16])
def test_exact_ties_are_counted(tmp_path: Path, heads: int) -> None:
    """transformers breaks ties its own way: tokens from the first one on are not compared."""
    oracle = make_oracle(index_n_heads=heads)
    operators = TieCounter()
    model = load_model(Checkpoint.open(save(oracle, tmp_path)), operators=operators)
    ids = torch.randint(0, 97, (4, 60))
    with torch.no_grad():
        expected = oracle(ids, use_cache=False).logits
    found = logits_of(model, ids, [60])
    assert (operators.ties > 0) == (heads < 16)
    compared = 0
    for row, first in enumerate(operators.first.expand(4).tolist()):
        assert relative(found[row, :first], expected[row, :first]) < TOLERANCE
        compared += min(first, 60)
    assert compared >= 4 * oracle.config.index_topk


@pytest.mark.parametrize("shape", ["plain", "shared_indexer", "fewer_groups"])
def test_decode_equals_full_pass(tmp_path: Path, shape: str) -> None:
    oracle = make_oracle(**SHAPES[shape])
    model = load_model(Checkpoint.open(save(oracle, tmp_path)))
    ids = torch.randint(0, 97, (2, 40))
    full = logits_of(model, ids, [40])
    assert relative(logits_of(model, ids, [1] * 40), full) < TOLERANCE
    assert relative(logits_of(model, ids, [13, 1, 20, 6]), full) < TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("original_format", [True, False], ids=["per_expert", "stacked"])
def test_storage_forms(tmp_path: Path, dtype: str, original_format: bool) -> None:
    oracle = make_oracle().to(getattr(torch, dtype))
    save(oracle, tmp_path, save_original_format=original_format, max_shard_size="60KB")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.experts_stacked(1) is not original_format
    ids = torch.randint(0, 97, (2, 21))
    with torch.no_grad():
        expected = reload_oracle(tmp_path)(ids, use_cache=False).logits
    assert relative(logits_of(load_model(checkpoint), ids, [21]), expected) < TOLERANCE


def test_float64_is_the_same_function(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save(make_oracle(), tmp_path))
    ids = torch.randint(0, 97, (1, 50))
    wide = logits_of(load_model(checkpoint, "float64"), ids, [50])
    absorbed = logits_of(load_model(checkpoint, "float64", absorbed=True), ids, [50])
    assert wide.dtype == torch.float64
    # Angles are float32 by definition, so the two forms differ by float64 rounding alone.
    assert relative(absorbed, wide) < 1e-12
