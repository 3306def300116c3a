"""Child Pythons import what their parent would, whatever lies in the user's current folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import glm_trt
from glm_trt.engines.build.engines import WORKER
from glm_trt.model.child_python import python, python_module

SOURCES = Path(glm_trt.__file__).parent
HOSTILE = "from pathlib import Path\nPath({mark!r}).touch()\nraise SystemExit('hostile')\n"
# What the worker has imported when it has read its request, and where glm_trt came from.
IMPORTED = """
import sys, glm_trt, glm_trt.engines.build.worker
print(*sorted({name.partition('.')[0] for name in sys.modules} - set(sys.builtin_module_names)))
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module of each name that a worker imports; returns their mark."""
    names = subprocess.run(python("-c", IMPORTED), capture_output=True, text=True, check=True)
    modules = {*names.stdout.split(), "torch", "triton", "tensorrt_rtx", "tensorrt", "glm_trt"}
    assert {"onnx", "json", "numpy", "tempfile", "google"} < modules and len(modules) > 100
    mark = tmp_path / "mark"
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in modules:
        (folder / f"{name}.py").write_text(HOSTILE.format(mark=str(mark)))
    monkeypatch.chdir(folder)
    return mark


def test_a_worker_imports_nothing_of_the_current_folder(hostile: Path) -> None:
    request = json.dumps({"backend": "none"})
    done = subprocess.run(WORKER, input=request, capture_output=True, text=True)
    assert not hostile.exists(), done.stderr
    assert done.returncode == 1 and "engines are built with tensorrt" in done.stderr
    started = subprocess.run([sys.executable, "-m", "json.tool"], input="1", text=True)
    assert started.returncode and hostile.exists()  # the folder is hostile indeed


def test_the_child_runs_the_package_of_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another glm_trt in PYTHONPATH is not it; what else is in there can be imported."""
    (tmp_path / "glm_trt").mkdir()
    (tmp_path / "glm_trt" / "__init__.py").write_text("raise SystemExit('another glm_trt')")
    (tmp_path / "sitecustomize.py").write_text("print('of the user')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [*python_module("glm_trt.engines.build.wheel"), "--plugins", "/absent"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "of the user\n"
    assert done.returncode == 3 and "/absent: missing" in done.stderr


def test_no_child_is_started_otherwise() -> None:
    """Nor by the Makefile."""
    starting = [path for path in SOURCES.glob("*/**/*.py") if "sys.executable" in path.read_text()]
    assert [path.name for path in starting] == ["child_python.py"]
    for path in SOURCES.glob("*/**/*.py"):
        text = path.read_text()
        assert text.count("ProcessPoolExecutor(") == text.count('get_context("fork")'), path
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert "python -m" not in makefile and "python -P -m" in makefile
