"""What several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm_trt.export.bundle import ExportOptions, export_checkpoint

TINY = Path(__file__).parent / "data" / "glm-5.1-tiny"


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as a self-contained bundle. Copy it before changing it."""
    bundle = tmp_path_factory.mktemp("bundles") / "tiny"
    export_checkpoint(TINY, bundle, ExportOptions(materialize=True))
    return bundle
