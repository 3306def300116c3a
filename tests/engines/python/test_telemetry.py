"""onnxruntime tells nobody what it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys, glm_trt
with glm_trt.load(sys.argv[1]) as runtime:
    runtime.forward([[1, 2, 3]])
"""


def test_no_identifier_of_this_machine_is_made(tiny_bundle: Path, tmp_path: Path) -> None:
    """It makes one, and a store of what is to be sent, in the home folder of its user."""
    # Alone: its telemetry is off of itself where it finds itself in a test or in CI.
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-P", "-c", SCRIPT, str(tiny_bundle)], check=True,
                   env=environment, cwd=tmp_path)  # fmt: skip
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_who_wants_it_says_so(tmp_path: Path) -> None:
    script = "import os, glm_trt; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, found in ((None, "1"), ("0", "0")):
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        if given is not None:
            environment["ORT_DISABLE_TELEMETRY"] = given
        done = subprocess.run([sys.executable, "-P", "-c", script], check=True, text=True,
                              capture_output=True, env=environment)  # fmt: skip
        assert done.stdout.strip() == found
