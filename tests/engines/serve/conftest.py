"""What the tests of the server share: servers of the tiny bundle, grammars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answers import ENDS, TEXT
from servers import Running, Start, start

from glm_trt.engines.serve.grammar import Grammars
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint

DIALOGUE = Path(__file__).parents[2] / "data" / "glm-5.1-dialogue"


@pytest.fixture(scope="package")
def server(tiny_bundle: Path) -> Iterator[Running]:
    """One that every test of this folder asks."""
    running = start(tiny_bundle, "--max-batch", "4", "--drafts", "1")
    yield running
    assert running.end() == 0


@pytest.fixture(scope="package")
def dialogue_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One of the checkpoint that reasons and calls tools."""
    bundle = tmp_path_factory.mktemp("dialogue") / "bundle"
    export_checkpoint(DIALOGUE, bundle, ExportOptions(dtypes=("float32",)))
    running = start(bundle, "--drafts", "1")
    yield running
    assert running.end() == 0


@pytest.fixture
def start_server(tiny_bundle: Path) -> Iterator[Start]:
    """Servers with options of their own, ended with the test."""
    started: list[Running] = []

    def started_one(*options: str, bundle: Path = tiny_bundle, **named: Any) -> Running:
        started.append(start(bundle, *options, **named))
        return started[-1]

    yield started_one
    for running in started:
        running.process.kill()
        running.process.wait()


@pytest.fixture(scope="session")
def grammars() -> Grammars:
    """Over a tokenizer with GLM's tokens."""
    return Grammars(TEXT.to_str(), TEXT.get_vocab_size(), ENDS)
