"""The eager hybrid model against the oracle put together from transformers' modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hybrids import HYBRIDS, make_hybrid, save_hybrid

from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.weights import load_model
from glm_trt.model.glm_moe_dsa import GlmMoeDsa

TOLERANCE = 2e-5


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm())


def logits_of(model: GlmMoeDsa, ids: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    """Logits [B, S, vocab] when `ids` are fed in pieces of these lengths."""
    states, past, outputs = model.empty_states(*ids.shape), 0, []
    for chunk in chunks:
        piece = ids[:, past : past + chunk]
        out, states = model(piece, states, torch.full((ids.shape[0],), past))
        outputs.append(out)
        past += chunk
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("absorbed", [False, True], ids=["expanded", "absorbed"])
@pytest.mark.parametrize("name", HYBRIDS)
def test_logits_equal_transformers(tmp_path: Path, name: str, absorbed: bool) -> None:
    oracle = make_hybrid(name)
    model = load_model(Checkpoint.open(save_hybrid(oracle, tmp_path)), absorbed=absorbed)
    for batch, length in ((1, 1), (2, 7), (3, 33), (1, 200)):
        ids = torch.randint(0, 97, (batch, length))
        with torch.no_grad():
            expected = oracle(ids, use_cache=False).logits
        assert relative(logits_of(model, ids, [length]), expected) < TOLERANCE, (batch, length)
    # Decode after prefill, and a longer piece behind it.
    assert relative(logits_of(model, ids, [130, 1, 1, 1, 67]), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["linear_first", "three_to_one", "shared_across"])
def test_rows_of_different_lengths_equal_each_alone(tmp_path: Path, name: str) -> None:
    """Logits and states, in two passes; a row may add nothing in one of them."""
    model = load_model(Checkpoint.open(save_hybrid(make_hybrid(name), tmp_path)))
    lengths = [[70, 3, 1, 20], [2, 5, 4, 0]]
    capacity = 80
    ids = [torch.randint(0, 97, (4, max(row))) for row in lengths]
    states, past, found = model.empty_states(4, capacity), torch.zeros(4, dtype=torch.int64), []
    for piece, real in zip(ids, lengths, strict=True):
        logits, states = model(piece, states, past, torch.tensor(real))
        past = past + torch.tensor(real)
        found.append(logits)
    for row in range(4):
        alone, begin = model.empty_states(1, capacity), 0
        for piece, real, logits in zip(ids, lengths, found, strict=True):
            count = real[row]
            if count:
                expected, alone = model(piece[row : row + 1, :count], alone, torch.tensor([begin]))
                assert relative(logits[row, :count], expected[0]) < TOLERANCE
            begin += count
        for state, of_row in zip(states, alone, strict=True):
            for key, tensor in of_row.items():
                mine = state[key][row : row + 1]
                if key in ("kv_cache", "index_keys"):
                    mine, tensor = mine[:, :, :begin], tensor[:, :, :begin]
                assert relative(mine, tensor) < TOLERANCE, key
