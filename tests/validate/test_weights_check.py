"""Every weight of a bundle beside the checkpoint's: what is wrong is named, and only that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import Faulty

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint import bindings as b
from glm_trt.validate.checking import weights_check
from glm_trt.validate.checking.weights_check import WeightsCheck
from glm_trt.validate.judging.problem_kinds import Finding, ProblemKind
from glm_trt.validate.running.reference import Reference
from glm_trt.validate.validation import all_blocks

Made = Callable[[str], tuple[Path, Path]]
DOWN = "mlp.experts.down_proj"


def opened(made: Made, name: str) -> tuple[Bundle, WeightsCheck]:
    checkpoint, bundle = made(name)
    return checked(bundle, checkpoint)


def checked(directory: Path, checkpoint: Path | None) -> tuple[Bundle, WeightsCheck]:
    bundle = Bundle.open(directory)
    return bundle, WeightsCheck(bundle, Reference(bundle, checkpoint))


def found_in(bundle: Bundle, check: WeightsCheck) -> dict[str, list[Finding]]:
    of = {block.name: list(check.of_block(block)) for block in all_blocks(bundle)}
    return {name: findings for name, findings in of.items() if findings}


@pytest.mark.parametrize("whole", [1 << 31, 0], ids=["whole", "sampled"])
@pytest.mark.parametrize("large", [1 << 26, 100], ids=["held", "in files"])
@pytest.mark.parametrize("name", ["plain", "hybrid", "fp8", "nvfp4"])
def test_a_sound_bundle_has_no_finding(
    made: Made, monkeypatch: pytest.MonkeyPatch, name: str, large: int, whole: int
) -> None:
    monkeypatch.setattr(weights_check, "WHOLE", whole)
    monkeypatch.setattr(b, "LARGE", large)
    bundle, check = opened(made, name)
    assert found_in(bundle, check) == {}
    count = sum(len(block.bindings) for block in all_blocks(bundle))
    assert check.to_dict() == {
        "whole": count if whole else 0, "sampled": 0 if whole else count, "skipped": None,
    }  # fmt: skip


EDITS: dict[str, tuple[str, str, str, Callable[[Any], Any], str]] = {}


def edit(of: str, block: str, weight: str, text: str) -> Callable[[Any], Any]:
    def listed(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        EDITS[change.__name__] = of, block, weight, change, text
        return change

    return listed


@edit(
    "plain",
    "embedding",
    "embed_tokens.weight",
    "numbers are not those of model.embed_tokens.weight",
)
def last_row(w: Any) -> Any:
    w[-1, -1] = np.nextafter(w[-1, -1], np.float32(9))
    return w


@edit("plain", "layer.1", DOWN, "are not those of model.layers.1.mlp.experts")
def one_expert(w: Any) -> Any:
    w[3, 2, 1] = np.nextafter(w[3, 2, 1], np.float32(9))
    return w


@edit("plain", "layer.1", "self_attn.k_up_proj", "model.layers.1.self_attn.kv_b_proj.weight")
def one_of_a_fused_matrix(w: Any) -> Any:
    w[1, 2, 3] = np.nextafter(w[1, 2, 3], np.float32(9))
    return w


@edit("plain", "head", "norm.weight", "found nan (bits ")
def not_a_number(w: Any) -> Any:
    w[4] = np.nan
    return w


@edit("fp8", "layer.1", "mlp.experts.gate_up_proj_scale_inv", "gate_proj.weight_scale_inv in")
def one_scale(w: Any) -> Any:
    w.flat[0] = np.nextafter(w.flat[0], np.float32(9))
    return w


@edit("nvfp4", "layer.1", DOWN, "found byte 0x")
def one_nibble(w: Any) -> Any:
    w[1, 2, 3] ^= 8
    return w


@pytest.mark.parametrize("large", [1 << 26, 100], ids=["held", "in files"])
@pytest.mark.parametrize("name", EDITS)
def test_one_number_is_found(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, large: int
) -> None:
    monkeypatch.setattr(b, "LARGE", large)
    of, block, weight, change, text = EDITS[name]
    checkpoint, bundle = made(of)
    copy = Faulty(bundle, tmp_path / "b")
    copy.weight(block, weight, change)
    copy.seal()
    found = found_in(*checked(tmp_path / "b", checkpoint))
    assert [*found] == [block]
    (finding,) = found[block]
    assert (finding.output, finding.kind) == (weight, ProblemKind.WEIGHTS)
    assert text in finding.text
    assert finding.text.startswith("1 of ")
    # Without the checkpoint there is nothing to compare with, and it says so.
    own, check = checked(tmp_path / "b", None)
    assert found_in(own, check) == {} and check.to_dict()["whole"] == 0
    assert "was not checked" in (check.skipped or "")


def test_samples_have_both_ends_of_every_tensor(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are the same places each time."""
    monkeypatch.setattr(weights_check, "WHOLE", 0)
    monkeypatch.setattr(weights_check, "SAMPLE", 2)
    monkeypatch.setattr(weights_check, "SAMPLES", 5)
    monkeypatch.setattr(b, "LARGE", 100)
    checkpoint, bundle = made("plain")
    for i, place in enumerate(((2, 0, 0), (2, -1, -1))):
        copy = Faulty(bundle, tmp_path / str(i))

        def change(w: Any, place: tuple[int, ...] = place) -> Any:
            w[place] += 1
            return w

        copy.weight("layer.1", DOWN, change)
        copy.seal()
        found = found_in(*checked(tmp_path / str(i), checkpoint))
        assert "1 of" in found["layer.1"][0].text and "sampled ones" in found["layer.1"][0].text
    samples = list(weights_check._samples(DOWN, [40, 100]))
    assert {(0, 2), (38, 40), (40, 42), (98, 100)} < set(samples)
    assert samples == list(weights_check._samples(DOWN, [40, 100]))
    assert samples != list(weights_check._samples("another", [40, 100]))


def changed(block: Block, of: str, **fields: Any) -> Block:
    """The block, with another binding of that name."""
    return replace(
        block,
        bindings=tuple(
            replace(x, **fields) if x.name == of else x for x in block.bindings
        ),
    )  # fmt: skip


def test_wrong_bindings(made: Made) -> None:
    """Another tensor of the same shape, a dtype, a shape, what is missing or too much."""
    bundle, check = opened(made, "plain")
    block = next(x for x in bundle.blocks if x.name == "layer.1")
    name, gate = "self_attn.q_a_layernorm.weight", "mlp.gate.weight"
    assert list(check.of_block(block)) == []

    def text(wrong: Block) -> str:
        (finding,) = check.of_block(wrong)
        return f"{finding.output}: {finding.text}"

    wrong = changed(block, gate, dtype=None)
    assert text(wrong) == f"{gate}: expected to be bound in float32, found the graph's dtype"
    wrong = changed(block, name, tensors=("nowhere",))
    assert text(wrong).startswith(f"{name}: cannot be bound: nowhere: in none of")
    wrong = changed(block, name, shape=(1,))
    assert text(wrong).endswith("], found [1]")
    wrong = replace(block, bindings=tuple(x for x in block.bindings if x.name != name))
    assert text(wrong) == f"{name}: no tensor is bound to it"
    wrong = changed(block, name, name="more")
    assert len(list(check.of_block(wrong))) == 2
