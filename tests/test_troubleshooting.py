"""docs/troubleshooting.md: its messages are those of the sources, and some are provoked."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from glm_trt.cli import main

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "tests/data/quantised/fp8-by-tensor"
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
ENTRIES = re.findall(r"^```\n(.*?)^```\n(.*?)(?=\n```|\n##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
MESSAGES = [line for block, _ in ENTRIES for line in block.splitlines()]
SOURCES = ("model", "plugins", "export", "engines", "validate", "glm_trt/commands")
# As much of a message is its source's, the rest is filled in.
LEAST_SHARE = 0.3
# What the sources say in fewer words is provoked below.
FEW_WORDS = {"missing 1 tensor(s): ", "target 'sm90'"}


@cache
def templates() -> dict[str, int]:
    """Patterns of the texts in the sources, with how many characters of each are given: what is
    filled in is anything.
    """
    found = {}
    for path in (p for of in SOURCES for p in (ROOT / of).rglob("*.py")):
        source = path.read_text()
        if "Error(" not in source:
            continue  # says nothing to anyone
        for node in ast.walk(ast.parse(source)):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if not all(isinstance(text, str | None) for text in texts):
                continue
            pattern = "".join(".*" if text is None else re.escape(text) for text in texts)
            pattern = pattern.partition("\\\n")[0]  # the first line
            found[pattern] = len(re.sub(r"\\|\.\*", "", pattern))
    return found


def test_messages_are_those_of_the_sources() -> None:
    assert len(MESSAGES) > 40
    makefile = (ROOT / "Makefile").read_text()
    for message in MESSAGES:
        if message in makefile or any(words in message for words in FEW_WORDS):
            continue
        without_place = message.partition(": ")[2]
        long_enough = (x for x, n in templates().items() if n >= LEAST_SHARE * len(message))
        assert any(
            re.fullmatch(x, message, re.DOTALL) or re.fullmatch(x, without_place, re.DOTALL)
            for x in long_enough
        ), message


def test_each_says_what_to_do() -> None:
    for block, text in ENTRIES:
        assert "**Do:**" in text, block


def _checkpoint(place: Path, without: str = "", **config: object) -> Path:
    """A copy, in which the tensor `without` has another name."""
    folder = place / "CHECKPOINT"
    shutil.copytree(CHECKPOINT, folder)
    weights = folder / "model.safetensors"
    if without:
        name = without.encode()
        weights.write_bytes(weights.read_bytes().replace(name, name.swapcase(), 1))
    whole = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def _pointer(place: Path) -> Path:
    folder = _checkpoint(place)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    return folder


def _no_weights(place: Path) -> Path:
    folder = _checkpoint(place)
    (folder / "model.safetensors").unlink()
    return folder


def _other_files(place: Path) -> Path:
    folder = place / "BUNDLE"
    folder.mkdir()
    (folder / "mine.txt").touch()
    return folder


def _old_bundle(place: Path) -> Path:
    folder = place / "BUNDLE"
    folder.mkdir()
    manifest = {"format": "glm-trt bundle", "format_version": 5}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _export(checkpoint: Callable[[Path], Path]) -> Callable[[Path], list[Path | str]]:
    return lambda place: ["export", checkpoint(place), "-o", place / "b"]


PROVOKED: dict[str, Callable[[Path], list[Path | str]]] = {
    "no directory": _export(lambda place: place / "CHECKPOINT"),
    "pointer": _export(_pointer),
    "no weights": _export(_no_weights),
    "another model": _export(lambda place: _checkpoint(place, model_type="llama")),
    "missing": _export(lambda place: _checkpoint(place, "model.layers.1.mlp.gate.weight")),
    "too long": lambda place: [*_export(_checkpoint)(place), "--max-seq-len", "8192"],
    "not a bundle": lambda place: ["export", _checkpoint(place), "-o", _other_files(place)],
    "no bundle": lambda place: ["inspect", place / "BUNDLE"],
    "old bundle": lambda place: ["inspect", _old_bundle(place)],
    "no library": lambda place: ["build", "b", "--plugins", "build/plugins/libglm_trt_plugins.so"],
    "target": lambda _: ["build", "b", "--target", "sm90", "--no-plugins"],
}


@pytest.mark.parametrize("name", PROVOKED)
def test_messages_as_they_are_printed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in ("no library", "target"):
        pytest.importorskip("tensorrt_rtx", reason="engines are built with tensorrt-rtx")
    monkeypatch.chdir(tmp_path)
    arguments = [str(x) for x in PROVOKED[name](tmp_path)]
    assert main(arguments) in (2, 3)
    line = capsys.readouterr().err.splitlines()[-1]
    said = line.removeprefix(f"glm-trt {arguments[0]}: error: ").replace(f"{tmp_path}/", "")
    versions = re.compile(r"\d+(\.\d+){2,}")
    assert versions.sub("V", said) in {versions.sub("V", message) for message in MESSAGES}
