"""pytest in forks of a process that has imported what tests import: a test costs what it does.

Only what is installed is imported before the fork, nothing of the tree: each fork imports that
from the copy it is given.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

MODULES = (
    "numpy", "torch", "torch.onnx", "onnx", "onnxscript", "onnxruntime", "safetensors.torch",
    "tokenizers", "jsonschema", "transformers", "transformers.models.glm_moe_dsa",
    "transformers.models.glm_moe_dsa.modeling_glm_moe_dsa",
    "transformers.models.qwen3_next.modeling_qwen3_next", "pytest",
)  # fmt: skip
MOST_SECONDS = 1800
OUTPUT = "pytest-output.txt"


class ForkServer:
    """The process, for one caller at a time. Use it as a context manager.

    Parameters
    ----------
    modules : imported before any fork.
    """

    def __init__(self, modules: Sequence[str] = MODULES) -> None:
        # As in tests/conftest.py, which is too late for what is imported here. Bytecode is kept by
        # second and size: an edit may change neither.
        environment = os.environ | {
            "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def __enter__(self) -> ForkServer:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def pytest(self, place: Path, arguments: Sequence[str]) -> tuple[int | None, str]:
        """pytest's exit code in `place` (of a signal its number below 0, None if it did not end in
        `MOST_SECONDS`), and the last lines of output.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"place": str(place), "arguments": list(arguments)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code: int | None = json.loads(self._process.stdout.readline())
        text = (place / OUTPUT).read_text(encoding="utf-8", errors="replace")
        return code, "\n".join(text.splitlines()[-25:])


def _serve() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
        if name == "torch":
            # A pool of threads does not survive a fork.
            sys.modules["torch"].set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request["place"], request["arguments"])
        print(json.dumps(_code(child)), flush=True)


def _run(place: str, arguments: list[str]) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(place)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for number in (1, 2):
            os.dup2(output, number)
        sys.path.insert(0, place)
        os.environ["PYTHONPATH"] = place
        code = int(importlib.import_module("pytest").main(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _code(child: int) -> int | None:
    end = time.monotonic() + MOST_SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.05)


if __name__ == "__main__":
    _serve()
