"""Exported graphs, run by plain onnxruntime, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from checkpoints import SHAPES, make_oracle, save

from glm_trt.export.trace import block_kind, trace_block
from glm_trt.model import bindings as b
from glm_trt.model.checkpoint import Checkpoint


def session(config: Any, kind: str) -> onnxruntime.InferenceSession:
    model = trace_block(config, kind, torch.float32)
    return onnxruntime.InferenceSession(model.SerializeToString())


def run(of: onnxruntime.InferenceSession, feed: dict[str, Any]) -> dict[str, np.ndarray]:
    names = [value.name for value in of.get_outputs()]
    return dict(zip(names, of.run(names, feed), strict=True))


@pytest.mark.parametrize("shape", ["plain", "shared_indexer", "attention_bias", "odd_sizes"])
def test_graphs_equal_transformers(tmp_path: Path, shape: str) -> None:
    oracle = make_oracle(**SHAPES[shape])
    checkpoint = Checkpoint.open(save(oracle, tmp_path))
    config = checkpoint.config

    def bound(bindings: list[b.Binding]) -> dict[str, np.ndarray]:
        return {x.name: b.bound_tensor(x, checkpoint, "float32") for x in bindings}

    kinds = {block_kind(config, i) for i in range(config.num_hidden_layers)}
    sessions = {kind: session(config, kind) for kind in (*kinds, "embedding", "head")}
    ids = torch.randint(0, config.vocab_size, (2, 30))
    with torch.no_grad():
        expected = oracle(ids, use_cache=False).logits.numpy()

    width = config.kv_lora_rank + config.qk_rope_head_dim
    caches = [
        [np.zeros((2, 1, 30, w), np.float32) for w in (width, config.index_head_dim)]
        for _ in config.layer_types
    ]
    found = []
    for start, stop in ((0, 17), (17, 18), (18, 30)):
        past = np.full(2, start)
        step = {"input_ids": ids[:, start:stop].numpy(), "past_lengths": past}
        out = run(sessions["embedding"], step | bound(b.embedding_bindings(config)))
        shared = {"past_lengths": past, "cos": out["cos"], "sin": out["sin"]}
        hidden, selected = out["hidden_out"], None
        for i, (cache, keys) in enumerate(caches):
            feed = {"hidden": hidden, "kv_cache": cache, **shared}
            full = config.indexer_types[i] == "full"
            feed |= {"index_keys": keys} if full else {"shared_indices": selected}
            feed |= bound(b.layer_bindings(config, checkpoint, i))
            out = run(sessions[block_kind(config, i)], feed)
            hidden, selected = out["hidden_out"], out.get("topk_indices", selected)
            caches[i] = [out["kv_cache_out"], out.get("index_keys_out", keys)]
        weights = bound(b.head_bindings(config, checkpoint))
        found.append(run(sessions["head"], {"hidden": hidden, **weights})["logits"])
    logits = np.concatenate(found, axis=1)
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 2e-5
