"""What tests of validation share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import make_bundle

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
