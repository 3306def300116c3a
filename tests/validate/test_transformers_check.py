"""transformers' line of a report: what it compares, and where it is not asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.utils as hub
import pytest
from test_faults import problems
from transformers.utils import logging as library

from glm_trt.model.glm_moe_dsa import Head
from glm_trt.validate.checking import transformers_check
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.validation import ValidationOptions, validate_bundle

Made = Callable[[str], tuple[Path, Path]]
SHORT = CaseOptions(longest=40)


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, transformers_reason: Any) -> None:
    """Other tests of validation do not ask transformers, which takes a second each time."""
    monkeypatch.setattr(transformers_check, "_reason", transformers_reason)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_makes_the_same(made: Made, dtype: str) -> None:
    checkpoint, bundle = made("plain")
    backend = "onnxruntime" if dtype == "float32" else "graph"
    report = validate_bundle(bundle, ValidationOptions(backend, dtype, checkpoint, SHORT))
    assert report["ok"], problems(report)
    line = report["transformers"]
    assert line["skipped"] is None and line["tokens"] == 25
    assert line["exact"]["top1"] == 1 and line["exact"]["max_kl_divergence"] < 1e-9
    if dtype == "float32":
        assert line["backend"]["top1"] == 1 and line["backend"]["max_kl_divergence"] < 1e-9
    else:
        assert 1e-9 < line["backend"]["median_kl_divergence"] < 1e-1


@pytest.mark.parametrize("quiet", [False, True])
def test_what_was_shown_before_is_shown_afterwards(
    made: Made, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    """Downloads of the same process have lines of their own."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    checkpoint, bundle = made("plain")
    before = library.get_verbosity()
    assert not hub.are_progress_bars_disabled() and library.is_progress_bar_enabled()
    if quiet:
        hub.disable_progress_bars()
    try:
        validate_bundle(bundle, ValidationOptions(checkpoint=checkpoint, cases=SHORT))
        assert hub.are_progress_bars_disabled() == quiet and library.is_progress_bar_enabled()
        assert library.get_verbosity() == before and "HF_HUB_OFFLINE" not in os.environ
    finally:
        hub.enable_progress_bars()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("hybrid", "no such hybrid"), ("fp8", "on a GPU alone"), ("nvfp4", "on a GPU alone")],
)
def test_where_it_is_not_asked(made: Made, name: str, reason: str) -> None:
    checkpoint, bundle = made(name)
    report = validate_bundle(bundle, ValidationOptions(checkpoint=checkpoint, cases=SHORT))
    assert reason in report["transformers"]["skipped"]


def test_without_prompts_it_is_not_asked(made: Made) -> None:
    checkpoint, bundle = made("plain")
    options = ValidationOptions(checkpoint=checkpoint, cases=CaseOptions(longest=4))
    assert validate_bundle(bundle, options)["transformers"]["skipped"] == "no prompt is that short"


def test_a_checkpoint_that_it_does_not_load(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Path) -> Any:
        raise RuntimeError("no such model\nand more")

    monkeypatch.setattr(transformers_check, "_load", load)
    checkpoint, bundle = made("plain")
    report = validate_bundle(bundle, ValidationOptions(checkpoint=checkpoint, cases=SHORT))
    assert report["ok"]
    assert report["transformers"]["skipped"] == "it does not run: RuntimeError: no such model"


def test_a_yardstick_that_is_another_model(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eager head scales what it makes, in every chain: only transformers can tell."""
    right = Head.forward

    def forward(self: Head, *arguments: Any) -> Any:
        return right(self, *arguments) * 1.01

    monkeypatch.setattr(Head, "forward", forward)
    checkpoint, bundle = made("plain")
    report = validate_bundle(bundle, ValidationOptions("eager", "float32", checkpoint, SHORT))
    assert not report["ok"]
    assert [text for text in problems(report) if "the yardstick is wrong" in text]
