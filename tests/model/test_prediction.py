"""The eager prediction layer against one put together from transformers' modules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import SHAPES, make_oracle, save
from hybrids import make_hybrid, save_hybrid
from predictions import PredictionOracle, last_layers_predict, reload_with_prediction
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from glm_trt.model.attention import Step
from glm_trt.model.checkpoint import Checkpoint
from glm_trt.model.config import ModelConfig
from glm_trt.model.glm_moe_dsa import GlmMoeDsa
from glm_trt.model.presets import preset_config
from glm_trt.model.states import State, kind_states
from glm_trt.model.tensors import mtp_attention_kind, mtp_kind, with_mtp_layers
from glm_trt.model.weights import Prediction, load_model, load_predictions

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests" / "data" / "glm-5.1-tiny"
TOLERANCE = 2e-5


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm())


def predict(
    model: GlmMoeDsa, prediction: Prediction, ids: Tensor, chunks: list[int]
) -> tuple[Tensor, Tensor]:
    """Hidden states and logits [B, S−1, ·] when S−1 tokens are fed in pieces of these lengths."""
    batch, length = ids.shape
    states, past, found = model.empty_states(batch, length), 0, []
    specs = kind_states(model.config, mtp_attention_kind(model.config))
    state: State = {spec.name: torch.zeros(spec.shape(batch, length)) for spec in specs}
    for chunk in chunks:
        piece, following = (ids[:, past + i : past + i + chunk] for i in (0, 1))
        hidden, step, states = model.decode(piece, states, torch.full((batch,), past))
        with torch.no_grad():
            embedded = model.embedding.embed_tokens(following)
            out = prediction.layer(hidden, embedded, state, step)
        state, past = out.state, past + chunk
        found.append(out.hidden)
    hidden = torch.cat(found, dim=1)
    return hidden, prediction.head(hidden)


@pytest.mark.parametrize("absorbed", [False, True], ids=["expanded", "absorbed"])
def test_tiny_equals_transformers(tmp_path: Path, absorbed: bool) -> None:
    oracle = PredictionOracle(reload_with_prediction(TINY, tmp_path / "c"), TINY)
    checkpoint = Checkpoint.open(TINY)
    model = load_model(checkpoint, absorbed=absorbed)
    (prediction,) = load_predictions(checkpoint, absorbed=absorbed)
    ids = torch.randint(0, 2048, (2, 61), generator=torch.Generator().manual_seed(0))
    for chunks in ([60], [40, 1, 1, 18]):
        for found, expected in zip(
            predict(model, prediction, ids, chunks), oracle(ids), strict=True
        ):
            assert relative(found, expected) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [{}, SHAPES["fewer_groups"], SHAPES["tied"], SHAPES["attention_bias"], SHAPES["odd_sizes"],
     dict(indexer_types=["full", "shared", "full"])],
    ids=["plain", "fewer_groups", "tied", "attention_bias", "odd_sizes", "shared_before"],
)  # fmt: skip
def test_random_weights_equal_transformers(tmp_path: Path, changes: dict[str, object]) -> None:
    """With more positions than the indexer keeps."""
    model = make_oracle(**changes)
    save(model, tmp_path)
    compare(PredictionOracle(model, last_layers_predict(tmp_path)), tmp_path, "indexed")


def test_full_attention_equals_transformers(tmp_path: Path) -> None:
    """The prediction layer of a decoder that has no indexer."""
    model = make_hybrid("all_full")
    save_hybrid(model, tmp_path)
    compare(PredictionOracle(model, last_layers_predict(tmp_path)), tmp_path, "full")


def compare(oracle: PredictionOracle, directory: Path, kind: str) -> None:
    checkpoint = Checkpoint.open(directory)
    assert mtp_kind(checkpoint.config) == f"mtp_sparse_{kind}"
    model, (prediction,) = load_model(checkpoint), load_predictions(checkpoint)
    assert (prediction.layer.self_attn.indexer is None) == (kind == "full")
    ids = torch.randint(0, checkpoint.config.vocab_size, (2, 41))
    for chunks in ([40], [17, 1, 22]):
        for found, expected in zip(
            predict(model, prediction, ids, chunks), oracle(ids), strict=True
        ):
            assert relative(found, expected) < TOLERANCE


def test_none_where_none_is_stored(tmp_path: Path) -> None:
    """A config may announce a layer that transformers did not save."""
    save(make_oracle(), tmp_path)
    data = json.loads((tmp_path / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(data))
    checkpoint = Checkpoint.open(tmp_path)
    assert not checkpoint.has_mtp
    assert load_predictions(checkpoint) == []


def test_a_further_layer_is_normed_as_its_head_norms(tmp_path: Path) -> None:
    save(make_oracle(), tmp_path)
    checkpoint = Checkpoint.open(last_layers_predict(tmp_path, count=2))
    model, (first, second) = load_model(checkpoint), load_predictions(checkpoint)
    assert torch.equal(first.layer.norm.weight, model.head.norm.weight)
    assert torch.equal(second.layer.norm.weight, first.head.norm.weight)
    assert not torch.equal(second.layer.norm.weight, second.head.norm.weight)


def test_of_a_hybrid_it_attends_as_those_layers_that_are_not_linear() -> None:
    config = ModelConfig.from_dict(preset_config("glm-5.1-hybrid", "full"))
    extended = with_mtp_layers(config)
    assert extended.attention_kinds == (*config.attention_kinds, "full")
    assert (extended.num_hidden_layers, extended.num_nextn_predict_layers) == (79, 0)
    assert extended.mlp_layer_types[-1] == "sparse"


def test_order_is_that_of_the_trained_layer() -> None:
    """docs/prediction.md: the other order of the concatenation guesses nothing."""
    checkpoint = Checkpoint.open(TINY)
    model, ((layer, head),) = load_model(checkpoint), load_predictions(checkpoint)
    text = (ROOT / "model" / "config.py").read_text()
    ids = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text).ids[: 6 * 162]
    rows, count = torch.tensor(ids).reshape(6, 162), 160
    hidden, step, _ = model.decode(rows, model.empty_states(6, 162), torch.zeros(6).long())
    step = Step(step.cos[:, :count], step.sin[:, :count], step.past_lengths)
    chosen = model.head(hidden)[:, 1:-1].argmax(-1)  # the model's own token t+2

    def measure() -> tuple[float, float]:
        specs = kind_states(model.config, "indexed")
        state = {spec.name: torch.zeros(spec.shape(6, count)) for spec in specs}
        embedded = model.embedding.embed_tokens(rows[:, 1:-1])
        logits = head(layer(hidden[:, :count], embedded, state, step).hidden)
        entropy = cross_entropy(logits.flatten(0, 1), rows[:, 2:].flatten())
        return float(entropy), float((logits.argmax(-1) == chosen).float().mean())

    entropy, agreement = measure()
    halves = layer.eh_proj.weight.data.chunk(2, dim=1)
    layer.eh_proj.weight.data = torch.cat(halves[::-1], dim=1)
    other_entropy, other_agreement = measure()
    assert agreement > 0.35 and other_agreement < 0.1
    assert entropy < other_entropy - 2
