"""What the tests of plugins share."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_harness import Harness

from glm_trt.plugins.common.interpreter import prepare_interpreter

prepare_interpreter()  # as GPUs do, in every test of a kernel


@pytest.fixture(scope="session")
def harness(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """The library over the stand-in for the driver."""
    return Harness(library, tmp_path_factory.mktemp("harness"))
