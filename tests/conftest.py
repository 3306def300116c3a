"""What several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from glm_trt.export.bundle import ExportOptions, export_checkpoint

# Side by side, each worker has one core: threads of several would wait for one another.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    torch.set_num_threads(1)

TINY = Path(__file__).parent / "data" / "glm-5.1-tiny"


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as a self-contained bundle. Copy it before changing it."""
    bundle = tmp_path_factory.mktemp("bundles") / "tiny"
    export_checkpoint(TINY, bundle, ExportOptions(materialize=True))
    return bundle
