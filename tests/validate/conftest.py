"""What tests of validation share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import make_bundle

from glm_trt.export.bundle.read import Bundle
from glm_trt.validate.checking import transformers_check
from glm_trt.validate.running.reference import Reference

Made = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Checkpoint and bundle by name, each made once. Copy a bundle before changing it."""
    place = tmp_path_factory.mktemp("bundles")
    known: dict[str, tuple[Path, Path]] = {}

    def of(name: str) -> tuple[Path, Path]:
        if name not in known:
            known[name] = make_bundle(name, place)
        return known[name]

    return of


@pytest.fixture(scope="session")
def transformers_reason() -> Callable[[Bundle, Reference], str | None]:
    """Why transformers is not asked, as it is without `transformers_not_asked`."""
    return transformers_check._reason


@pytest.fixture(autouse=True)
def transformers_not_asked(transformers_reason: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second of each validation; `test_transformers_check.py` asks it."""
    monkeypatch.setattr(transformers_check, "_reason", lambda *_: "a test of something else")
