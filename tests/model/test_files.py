"""The lock file of an export or a build: one holds it, and it is gone afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glm_trt.model.errors import BundleError
from glm_trt.model.files import locked

# Holds the lock so often, and has a file of its own meanwhile, which cannot be made twice.
HOLDER = """
import os, sys
from pathlib import Path
from glm_trt.model.errors import BundleError
from glm_trt.model.files import locked
place, held = Path(sys.argv[1]), 0
while held < 200:
    try:
        with locked(place / ".lock", "export"):
            held += 1
            os.close(os.open(place / "inside", os.O_CREAT | os.O_EXCL))
            os.unlink(place / "inside")
    except BundleError:
        pass
"""


def test_one_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "of" / ".lock"
    with locked(path, "export"):
        for _ in range(2):  # who was refused leaves it as it was
            with (
                pytest.raises(BundleError, match=r"\.lock: another export is running"),
                locked(path, "export"),
            ):
                pytest.fail("it was held twice")
        assert path.exists()
    assert not path.exists()
    with pytest.raises(KeyError), locked(path, "export"):
        raise KeyError
    assert not path.exists()


def test_processes_that_want_it_take_turns(tmp_path: Path) -> None:
    """Each removes the file while others have opened it."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, said
    assert not list(tmp_path.iterdir())
