"""Exported graphs, run by plain onnxruntime, against transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from checkpoints import SHAPES, make_oracle, save
from hybrids import HYBRIDS, make_hybrid, save_hybrid
from peaks import peak_of_block
from traces import trace_once

from glm_trt.export import trace
from glm_trt.export.trace import trace_block
from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.presets import preset_config
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.config import ModelConfig, block_kind
from glm_trt.model.states import layer_states


def session(config: Any, kind: str) -> onnxruntime.InferenceSession:
    model = trace_once(config, kind, torch.float32)
    return onnxruntime.InferenceSession(model.SerializeToString())


def run(of: onnxruntime.InferenceSession, feed: dict[str, Any]) -> dict[str, np.ndarray]:
    names = [value.name for value in of.get_outputs()]
    return dict(zip(names, of.run(names, feed), strict=True))


@pytest.mark.parametrize("shape", ["plain", "shared_indexer", "attention_bias", "odd_sizes"])
def test_graphs_equal_transformers(tmp_path: Path, shape: str) -> None:
    oracle = make_oracle(**SHAPES[shape])
    save(oracle, tmp_path)
    compare(oracle, Checkpoint.open(tmp_path))


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrid_graphs_equal_transformers(tmp_path: Path, name: str) -> None:
    oracle = make_hybrid(name)
    save_hybrid(oracle, tmp_path)
    compare(oracle, Checkpoint.open(tmp_path))


@pytest.mark.parametrize("kind", ["embedding", "sparse_linear"])
def test_real_sizes_need_no_memory(kind: str) -> None:
    """Weights of 4 and 41 GB in float32."""
    config = ModelConfig.from_dict(preset_config("glm-5.1-hybrid", "full"))
    with peak_of_block() as peak:
        assert len(trace_block(config, kind, torch.float32).SerializeToString()) < 100_000
    assert peak.bytes < 500e6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_linear_graphs_keep_their_recurrent_state_wide(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    config = Checkpoint.open(save_hybrid(make_hybrid("all_linear"), tmp_path)).config
    graph = trace_once(config, "sparse_linear", dtype).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}
    wide = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT}
    assert wide == {
        "recurrent_state", "recurrent_state_out", "linear_attn.A_log", "linear_attn.dt_bias",
        "mlp.gate.weight", "mlp.gate.e_score_correction_bias",
    }  # fmt: skip
    standard = {node.op_type: node for node in graph.node if node.domain == ""}
    assert all(standard["LinearAttention"].input) and len(standard["LinearAttention"].input) == 6
    assert all(standard["CausalConvWithState"].input)


@pytest.mark.parametrize("kind", ["sparse_indexed", "sparse_shared", "sparse_linear"])
def test_layers_of_a_kind_share_a_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The last one's is the first one's, whatever stands around them."""
    hybrid = save_hybrid(make_hybrid("sparse_linear_first"), tmp_path / "hybrid")
    few = Checkpoint.open(hybrid).config
    assert block_kind(few, 0) == "sparse_linear"
    schedule = dict(
        num_hidden_layers=7, mlp_layer_types=("dense", *["sparse"] * 6),
        layer_types=("full_attention", "linear_attention", *["indexed_attention"] * 4,
                     "linear_attention"),
        indexer_types=("full", "full", "full", "shared", "full", "shared", "full"),
    )  # fmt: skip
    many = replace(few, **schedule)
    last = max(i for i in range(7) if block_kind(many, i) == kind)
    monkeypatch.setattr(trace, "_first_layer", lambda *_: last)
    assert trace_block(many, kind, torch.float32) == trace_once(few, kind, torch.float32)


def compare(oracle: Any, checkpoint: Checkpoint) -> None:
    """Logits of passes of 17, 1 and 12 tokens, graph by graph, with the oracle's."""
    config = checkpoint.config

    def bound(bindings: list[b.Binding]) -> dict[str, np.ndarray]:
        return {x.name: b.bound_tensor(x, checkpoint, "float32") for x in bindings}

    kinds = {block_kind(config, i) for i in range(config.num_hidden_layers)}
    sessions = {kind: session(config, kind) for kind in (*kinds, "embedding", "head")}
    ids = torch.randint(0, config.vocab_size, (2, 30))
    with torch.no_grad():
        expected = oracle(ids, use_cache=False).logits.numpy()

    states = [
        {spec.name: np.zeros(spec.shape(2, 30), np.float32) for spec in layer_states(config, i)}
        for i in range(config.num_hidden_layers)
    ]
    found = []
    for start, stop in ((0, 17), (17, 18), (18, 30)):
        past = np.full(2, start)
        step = {"input_ids": ids[:, start:stop].numpy(), "past_lengths": past}
        out = run(sessions["embedding"], step | bound(b.embedding_bindings(config, checkpoint)))
        shared = {"past_lengths": past, "cos": out["cos"], "sin": out["sin"]}
        shared |= {"lengths": np.full(2, stop - start)}
        hidden, selected = out["hidden_out"], None
        for i, state in enumerate(states):
            of = sessions[block_kind(config, i)]
            feed = {"hidden": hidden, "shared_indices": selected, **shared, **state}
            feed |= bound(b.layer_bindings(config, checkpoint, i))
            out = run(of, {value.name: feed[value.name] for value in of.get_inputs()})
            hidden, selected = out["hidden_out"], out.get("topk_indices", selected)
            states[i] = {name: out[f"{name}_out"] for name in state}
        weights = bound(b.head_bindings(config, checkpoint))
        found.append(run(sessions["head"], {"hidden": hidden, **weights})["logits"])
    logits = np.concatenate(found, axis=1)
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 2e-5
