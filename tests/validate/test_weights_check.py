"""Weights beside the checkpoint's: all or a sample, what is missing, what cannot be known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faults import Faulty
from test_faults import problems

from glm_trt.model import bindings
from glm_trt.validate import weights_check
from glm_trt.validate.cases import CaseOptions
from glm_trt.validate.reference import Reference
from glm_trt.validate.validation import ValidationOptions, open_bundle, validate_bundle
from glm_trt.validate.weights_check import WeightsCompared, compare_weights, start_comparing

Made = Callable[[str], tuple[Path, Path]]


def compared(directory: Path, checkpoint: Path, block: str) -> WeightsCompared:
    bundle = open_bundle(directory, checkpoint)
    reference = Reference(bundle, checkpoint)
    found = start_comparing(bundle, reference)
    assert found is not None
    compare_weights(bundle, reference, next(x for x in bundle.blocks if x.name == block), found)
    return found


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacks of experts and embeddings stay in their files, as those of the published model do."""
    monkeypatch.setattr(bindings, "LARGE", 100)
    monkeypatch.setattr(weights_check, "SAMPLED", 4)
    monkeypatch.setattr(weights_check, "ROWS", 10)


@pytest.mark.parametrize("name", ["plain", "fp8", "nvfp4", "hybrid"])
def test_weights_that_stay_in_files_are_the_same(made: Made, in_files: None, name: str) -> None:
    checkpoint, directory = made(name)
    for block in ("embedding", "layer.1", "head"):
        found = compared(directory, checkpoint, block)
        assert found.differences == [] and found.whole and found.numbers


@pytest.mark.parametrize(("expert", "seen"), [(0, True), (7, True), (3, False)])
def test_a_sample_has_the_first_and_last_part(
    made: Made, tmp_path: Path, in_files: None, monkeypatch: pytest.MonkeyPatch,
    expert: int, seen: bool,
) -> None:  # fmt: skip
    """Of eight experts four: 0, two that are drawn (4 and 5), and 7."""
    checkpoint, directory = made("plain")
    copy = Faulty(directory, tmp_path / "faulty")

    def edit(weight: np.ndarray) -> np.ndarray:
        weight[expert, 2, 3] += 1
        return weight

    copy.weight("layer.1", "mlp.experts.down_proj", edit)
    copy.seal()
    monkeypatch.setattr(weights_check, "WHOLE", 1)
    found = compared(copy.directory, checkpoint, "layer.1")
    assert not found.whole
    texts = [entry["text"] for entry in found.differences]
    assert len(texts) == seen and all(f"at [{expert}, 2, 3]: expected" in text for text in texts)
    monkeypatch.setattr(weights_check, "WHOLE", 1 << 32)
    assert len(compared(copy.directory, checkpoint, "layer.1").differences) == 1


def test_rows_of_an_embedding_are_counted_from_its_beginning(
    made: Made, tmp_path: Path, in_files: None
) -> None:
    checkpoint, directory = made("plain")
    copy = Faulty(directory, tmp_path / "faulty")

    def edit(weight: np.ndarray) -> np.ndarray:
        weight[[95, 96], 5] += 1
        return weight

    copy.weight("embedding", "embed_tokens.weight", edit)
    copy.seal()
    (entry,) = compared(copy.directory, checkpoint, "embedding").differences
    assert (entry["block"], entry["weight"]) == ("embedding", "embed_tokens.weight")
    assert "at [95, 5]: expected" in entry["text"] and entry["text"].endswith(", and 1 more")


def test_a_binding_that_is_missing_or_of_another_shape(made: Made) -> None:
    checkpoint, directory = made("plain")
    bundle = open_bundle(directory, checkpoint)
    reference = Reference(bundle, checkpoint)
    block = bundle.blocks[1]
    found = start_comparing(bundle, reference)
    assert found is not None
    lost, *kept = block.bindings
    compare_weights(bundle, reference, replace(block, bindings=tuple(kept)), found)
    assert [(x["weight"], x["text"]) for x in found.differences] == [
        (lost.name, "expected a weight, found no binding")
    ]
    other = next(x for x in kept if x.shape != kept[0].shape and len(x.shape) == len(x.tensors))
    exchanged = replace(kept[0], tensors=other.tensors, shape=other.shape)
    compare_weights(bundle, reference, replace(block, bindings=(lost, exchanged)), found)
    assert any("expected float32" in x["text"] for x in found.differences[1:])


def test_a_bundle_without_its_checkpoint_says_so(made: Made) -> None:
    _, directory = made("plain")
    report = validate_bundle(directory, ValidationOptions(cases=CaseOptions(longest=2)))
    assert report["ok"], problems(report)
    assert report["weights"] is None
