"""The onnxruntime backend against transformers: logits, greedy tokens, states in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from checkpoints import SHAPES, make_oracle, reload_oracle, save

import glm_trt
from glm_trt.export.bundle import ExportOptions, export_checkpoint
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"
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
        sequence = runtime.start(1)
        steps = [sequence.step(ids.numpy()[:, i : i + 1]) for i in range(length)]
        assert relative(np.concatenate(steps, axis=1), found) < TOLERANCE


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
        sequence = runtime.start(2)
        pieces = [sequence.step(ids[:, a:b], all_logits=True) for a, b in
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
