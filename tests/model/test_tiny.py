"""The trained tiny checkpoint: logits and greedy tokens against transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from checkpoints import reload_oracle
from transformers import AutoTokenizer

from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.weights import load_model

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"


def test_greedy_tokens_equal_transformers() -> None:
    oracle, model = reload_oracle(TINY), load_model(Checkpoint.open(TINY))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = tokenizer("def fibonacci(n):", return_tensors="pt").input_ids
    new = 40
    expected = oracle.generate(ids, max_new_tokens=new, do_sample=False)

    states = model.empty_states(1, ids.shape[1] + new)
    tokens, piece = ids, ids
    while tokens.shape[1] < expected.shape[1]:
        past = torch.tensor([tokens.shape[1] - piece.shape[1]])
        logits, states = model(piece, states, past)
        piece = logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, piece], dim=1)
    assert tokens.tolist() == expected.tolist()
