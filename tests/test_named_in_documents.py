"""Whatever a document of the repository names is there: files, folders, modules, headings."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "docker", "docs", "engines", "examples", "export", "glm_trt", "model",
           "plugins", "tests", "validate")  # fmt: skip
PLACES = [ROOT / folder for folder in FOLDERS if folder != "glm_trt"]  # it links to the others
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(path for place in PLACES for path in place.rglob("*.md")))
    if "node_modules" not in path.parts
)
# Paths that begin like those of the repository: two of bundles, and one that a reader makes.
NOT_HERE = {"plugins/libglm_trt_plugins.so", "engines/*/*/*/*.plan", "plugins/toy_add"}
WRITTEN = {"reproduce.py"}  # by commands
# Of pkg-config, and of spans.
NO_MODULES = {"glm_trt.pc", "glm_trt.request_id", "glm_trt.choice"}
PATH = re.compile(r"(?<![\w/.$:-])(?:[\w*.-]+/)+[\w*.-]*")
FILE = re.compile(r"(?<![\w/.*-])[a-z]\w*\.(?:py|cpp|toml)\b")
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b")
MODULE = re.compile(r"(?<![\w/.])glm_trt(?:\.\w+)+")
TEST = re.compile(r"`(test_\w+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def names() -> set[str]:
    return {path.name for place in (*PLACES, ROOT / "glm_trt") for path in place.rglob("*.*")}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_folders(name: str) -> None:
    """From the top, from the document, from the tests, or as C++ includes it; OPERATOR and the like
    stand for any name.
    """
    document = ROOT / name
    text = document.read_text()
    found = {PLACEHOLDER.sub("*", path.rstrip(".")) for path in PATH.findall(text)} - NOT_HERE
    places = (ROOT, document.parent, ROOT / "tests", ROOT / "engines/cpp/include")
    missing = {
        path
        for path in found
        if path.split("/")[0] in FOLDERS and not any(any(p.glob(path)) for p in places)
    }
    assert not missing
    assert not {*FILE.findall(text)} - WRITTEN - names()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_modules(name: str) -> None:
    for module in {*MODULE.findall((ROOT / name).read_text())} - NO_MODULES:
        place = ROOT
        for part in (parts := module.split(".")):
            if not (place / part).is_dir():
                break
            place, parts = place / part, parts[1:]
        if parts and (place / f"{parts[0]}.py").is_file():
            place, parts = place / f"{parts[0]}.py", parts[1:]
        source = place / "__init__.py" if place.is_dir() else place
        there = not parts or parts[0] == "__path__" or parts[0] in source.read_text()
        assert source.is_file() and there, module


def test_tests() -> None:
    """A document that names a test as what proves it is right."""
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = {*re.findall(r"^def (test_\w+)", sources, re.MULTILINE)}
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for name in DOCUMENTS:
        missing = {*TEST.findall((ROOT / name).read_text())} - there - files
        assert not missing, name


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name: str) -> None:
    document = ROOT / name
    for link in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(document: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings}
