"""What tests of checkpoints as people publish them share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoints import make_oracle, save


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers: dense with an indexer, sparse with a shared selection, sparse with one."""
    oracle = make_oracle(
        n_routed_experts=4, index_n_heads=32, indexer_types=["full", "shared", "full"]
    )
    return save(oracle, tmp_path_factory.mktemp("base") / "c")


@pytest.fixture
def directory(base: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(base, tmp_path / "c"))
