"""The code blocks of documents that promise to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glm_trt.engines.build.flavours import load_flavour
from glm_trt.export.bundle.format import FORMAT_VERSION
from glm_trt.validate.reporting import report_files
from glm_trt.validate.saving import recording

ROOT = Path(__file__).parent.parent


def test_linear_attention_page(library: Path, tmp_path: Path) -> None:
    """Its example builds an engine with the library alone: nothing of GLM is imported."""
    pytest.importorskip("tensorrt_rtx", reason="engines are built with tensorrt-rtx")
    page = (ROOT / "docs/linear_attention.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert "glm_trt" not in first.replace("libglm_trt_plugins.so", "")
    code = first.replace("build/plugins/libglm_trt_plugins.so", str(library)) + second
    environment = os.environ | load_flavour("tensorrt-rtx").environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[0-9]{4,} bytes", done.stdout.strip())


def test_each_row_of_the_checkpoints_page_is_a_test() -> None:
    """Every test that it names is there, and every row names one, or the one above."""
    page = (ROOT / "docs/checkpoints.md").read_text()
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    there = set(re.findall(r"^def (test_\w+)", "\n".join(sources), re.MULTILINE))
    named = {name for name in re.findall(r"\btest_\w+(?!\.py)\b", page) if f"{name}.py" not in page}
    assert len(named) > 30 and named <= there, named - there
    for path in re.findall(r"`(tests/[\w/]+\.py)`", page):
        assert (ROOT / path).is_file(), path
    rows = [line for line in page.splitlines() if re.match(r"\| (?!kind)", line)]
    assert len(rows) > 80
    for row in rows:
        kind, happens, test = (cell.strip() for cell in row.strip("|").split(" | "))
        assert kind and happens and re.search("test|the same|above|`", test), row


def test_the_upgrade_table_is_whole() -> None:
    """Each version of the bundle, and the present one of every format that is read."""
    page = (ROOT / "docs/bundle.md").read_text().partition("## Upgrading")[2]
    versions = [int(x) for x in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert versions == [*range(FORMAT_VERSION, 0, -1)]
    read = re.findall(r"^\| `([a-z]+)\.json`.*? \| (\d+) \|", page, re.MULTILINE)
    assert read == [("manifest", str(FORMAT_VERSION)), ("report", str(report_files.FORMAT_VERSION)),
                    ("run", str(recording.FORMAT_VERSION))]  # fmt: skip
