"""What is given for a checkpoint by mistake, and what the message says to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm_trt.cli import main
from glm_trt.engines.planning.source import find_source
from glm_trt.model.checkpoint.place import hub_name
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.errors import CheckpointError, ConfigError

TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (str(TINY / "config.json"), f"give the checkpoint's directory: {TINY}"),
        (str(TINY / "model.safetensors"), f"give the checkpoint's directory: {TINY}"),
        ("glm-5.1-hybrid", "glm-trt make-checkpoint glm-5.1-hybrid -o DIR"),
        ("nowhere", "nowhere: not a directory; expected a checkpoint directory\n"),
    ],
)
def test_export(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", given, "-o", "bundle"]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_hub_name_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command fetches it; a library that does so unasked would surprise."""
    monkeypatch.chdir(tmp_path)
    fetch = "hf download zai-org/GLM-5.1 --local-dir GLM-5.1; then give GLM-5.1"
    with pytest.raises(CheckpointError, match=fetch):
        Checkpoint.open("zai-org/GLM-5.1")
    with pytest.raises(ConfigError, match=r"hf download zai-org/GLM-5\.1 config"):
        find_source("zai-org/GLM-5.1")


def test_a_path_is_not_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for path in ("models/GLM-5.1", "a/b/c", "/a/b", "../b", "name"):
        assert hub_name(Path(path)) is None
