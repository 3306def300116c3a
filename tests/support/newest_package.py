"""A newer release of one package over the environment that the tests run in."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest


def newest(place: Path, requirement: str) -> Path:
    """The Python of a new environment in `place`, which has the newest release that meets
    `requirement` and all else from here. Skips where no package index can be reached.
    """
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", requirement],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        pytest.skip(
            f"pip cannot install {requirement}: {lines[-1] if lines else 'no reason given'}"
        )
    (Path(site) / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    assert Path(sys.prefix) not in place.parents
    return python
