"""The onnxruntime backend against transformers: logits, greedy tokens, states in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from checkpoints import SHAPES, make_oracle, reload_oracle, save
from hybrids import HYBRIDS, make_hybrid, save_hybrid

import glm_trt
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError

TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"
TOLERANCE = 2e-5


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(tmp_path: Path, shape: str) -> None:
    oracle = make_oracle(**SHAPES[shape])
    save(oracle, tmp_path / "c", save_original_format=shape != "groups")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions())
    with glm_trt.load(tmp_path / "b") as runtime:
        for batch, length in ((1, 1), (2, 7), (3, 33), (1, 300)):
            ids = torch.randint(0, oracle.config.vocab_size, (batch, length))
            with torch.no_grad():
                expected = oracle(ids, use_cache=False).logits.numpy()
            found = runtime.forward(ids.numpy())
            assert relative(found, expected) < TOLERANCE, (batch, length)
        # Token by token: all of them of one shape, of the others those behind most of the prompt.
        cuts = range(0 if shape == "plain" else 270, length)
        sequence = runtime.backend.batch(1)
        steps = [sequence.step(x, logits="all") for x in np.split(ids.numpy(), cuts[1:], axis=1)]
        assert relative(np.concatenate(steps, axis=1), found) < TOLERANCE


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrid_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    """In one pass, token by token, and in pieces, which grow the states of a batch."""
    oracle = make_hybrid(name)
    save_hybrid(oracle, tmp_path / "c")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(dtypes=("float32",)))
    with glm_trt.load(tmp_path / "b") as runtime:
        for batch, length in ((1, 1), (2, 7), (2, 150)):
            ids = torch.randint(0, 97, (batch, length)).numpy()
            with torch.no_grad():
                expected = oracle(torch.from_numpy(ids), use_cache=False).logits.numpy()
            assert relative(runtime.forward(ids), expected) < TOLERANCE, (batch, length)
        for cuts in (range(1, 150), (2, 65, 66, 67, 129)):
            sequence = runtime.backend.batch(2)
            pieces = [sequence.step(p, logits="all") for p in np.split(ids, cuts, axis=1)]
            assert relative(np.concatenate(pieces, axis=1), expected) < TOLERANCE, cuts
        ids = ids[:, :20]
        found = runtime.generate(ids, 12, eos_token_ids=())
        for tokens in np.array(found).T:
            with torch.no_grad():
                logits = oracle(torch.from_numpy(ids), use_cache=False).logits
            assert tokens.tolist() == logits[:, -1].argmax(-1).tolist()
            ids = np.concatenate([ids, tokens[:, None]], axis=1)


@pytest.mark.parametrize("name", ["linear_first", "shared_across"])
def test_rows_of_different_lengths_equal_each_alone(tmp_path: Path, name: str) -> None:
    """In three passes, which grow the states; a row may append nothing in one of them."""
    save_hybrid(make_hybrid(name), tmp_path / "c")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(dtypes=("float32",)))
    rng = np.random.default_rng(0)
    lengths = np.array([[40, 1, 7], [100, 3, 0], [1, 1, 1]])
    with glm_trt.load(tmp_path / "b") as runtime:
        together, alone = runtime.backend.batch(3), [runtime.backend.batch(1) for _ in range(3)]
        for appended in lengths:
            ids = rng.integers(0, 97, (3, appended.max()))
            found = together.step(ids, lengths=appended)
            for row, count in enumerate(appended.tolist()):
                if count:
                    expected = alone[row].step(ids[row : row + 1, :count])
                    assert relative(found[row], expected[0]) < TOLERANCE, (row, count)
    assert together.lengths.tolist() == lengths.sum(0).tolist()


def test_tiny_generates_what_transformers_does(tiny_bundle: Path) -> None:
    oracle = reload_oracle(TINY)
    with glm_trt.load(tiny_bundle) as runtime:
        for ids in ([[456, 289, 1356, 271, 1196, 476, 11, 81, 312]], [[5, 6], [100, 7]]):
            expected = oracle.generate(torch.tensor(ids), max_new_tokens=60, do_sample=False)
            found = runtime.generate(ids, 60)
            for row, theirs in zip(found, expected[:, len(ids[0]) :].tolist(), strict=True):
                assert row == theirs[: len(row)]


def test_growing_states_change_nothing(tiny_bundle: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 2048, (2, 290))
    with glm_trt.load(tiny_bundle) as runtime:
        whole = runtime.forward(ids)
        sequence = runtime.backend.batch(2)
        pieces = [sequence.step(ids[:, a:b], logits="all") for a, b in
                  ((0, 100), (100, 101), (101, 128), (128, 129), (129, 290))]  # fmt: skip
    assert relative(np.concatenate(pieces, axis=1), whole) < TOLERANCE


def test_stops_and_sampling(tiny_bundle: Path) -> None:
    with glm_trt.load(tiny_bundle) as runtime:
        (greedy,) = runtime.generate([[3, 4]], 8, eos_token_ids=())
        (stopped,) = runtime.generate([[3, 4]], 8, eos_token_ids=(greedy[2],))
        assert stopped == greedy[: greedy.index(greedy[2]) + 1]
        assert runtime.generate([[3, 4]], 0) == [[]]
        sampled = [runtime.generate([[3, 4]], 8, temperature=1.0, seed=s) for s in (1, 1, 2)]
        assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize("ids", [[], [[]], [1, 2], [[1.5]], [[-1]], [[2048]]])
def test_bad_ids_are_refused(tiny_bundle: Path, ids: Any) -> None:
    with glm_trt.load(tiny_bundle) as runtime, pytest.raises(GlmTrtError, match="input_ids"):
        runtime.forward(ids)


def test_too_long_a_sequence_is_refused(tmp_path: Path) -> None:
    save(make_oracle(), tmp_path / "c")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(max_seq_len=10))
    with glm_trt.load(tmp_path / "b") as runtime:
        runtime.forward([[1] * 10])
        with pytest.raises(GlmTrtError, match="sequence of 11 tokens"):
            runtime.forward([[1] * 11])


def test_the_process_may_have_sessions_of_its_own(tiny_bundle: Path) -> None:
    with glm_trt.load(tiny_bundle):
        head = tiny_bundle / "graphs" / "float32" / "head.onnx"
        ort.InferenceSession(head, providers=["CPUExecutionProvider"])


def test_other_backends_say_what_is_missing(tiny_bundle: Path) -> None:
    with pytest.raises(MissingCapabilityError, match="tensorrt"):
        glm_trt.load(tiny_bundle, "tensorrt")
