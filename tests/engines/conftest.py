"""What tests of the runtime and of the server share: the tiny bundle loaded, text for prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import glm_trt
from glm_trt.engines.python.runtime import Runtime


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> Iterator[Runtime]:
    """On onnxruntime; each module has its own."""
    with glm_trt.load(tiny_bundle) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def source(runtime: Runtime) -> list[int]:
    """3,000 token IDs of text that the checkpoint was trained for, for prompts."""
    assert runtime.text is not None
    return runtime.text.encode(Path(torch.__file__).read_text())[:3000]
