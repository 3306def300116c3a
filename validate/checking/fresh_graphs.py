"""What this version exports for the kinds of a bundle, traced beside the work of this process.

Tracing takes 2 to 4 s a kind, most of it in the exporter of PyTorch and none of it in what a
validation does meanwhile: a process of its own has it ready on a second core.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from glm_trt.model.child_python import python_module
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.files import write_atomically

_REQUEST, _LOG = "request.json", "log.txt"
_POLL_SECONDS = 0.05


class FreshGraphs:
    """Traces of `kinds` in `dtype`, in their order; to be closed.

    Parameters
    ----------
    config : a config.json as data.
    """

    def __init__(self, config: Mapping[str, Any], kinds: Sequence[str], dtype: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="glm-trt-traces-")
        self._place = Path(self._folder.name)
        request = {"config": config, "kinds": list(kinds), "dtype": dtype}
        (self._place / _REQUEST).write_text(json.dumps(request))
        with (self._place / _LOG).open("wb") as log:
            self._child = subprocess.Popen(
                [*python_module(__name__), str(self._place)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def model(self, kind: str) -> onnx.ModelProto:
        """The graph of `kind`, waited for.

        Raises
        ------
        GlmTrtError
            If it could not be traced.
        """
        path = self._place / f"{kind}.onnx"
        while not path.is_file():
            if self._child.poll() is not None and not path.is_file():
                said = (self._place / _LOG).read_text(errors="replace").strip().splitlines()
                why = said[-1] if said else f"exit code {self._child.returncode}"
                raise GlmTrtError(f"{kind}: cannot be traced anew: {why}")
            time.sleep(_POLL_SECONDS)
        return onnx.load(path)

    def close(self) -> None:
        """End the tracing, done or not."""
        self._child.kill()
        self._child.wait()
        self._folder.cleanup()


def trace_all(place: str) -> None:
    """What the process of its own does: `KIND.onnx` for each kind that is asked for."""
    # Seconds to load, which whoever waits has not got to spend.
    import torch

    from glm_trt.export.trace import trace_block
    from glm_trt.model.checkpoint.weights import TORCH_DTYPES

    torch.set_num_threads(1)
    request = json.loads((Path(place) / _REQUEST).read_text())
    config = ModelConfig.from_dict(request["config"], "config")
    for kind in request["kinds"]:
        model = trace_block(config, kind, TORCH_DTYPES[request["dtype"]])
        content = model.SerializeToString(deterministic=True)
        write_atomically(Path(place) / f"{kind}.onnx", content)


if __name__ == "__main__":
    trace_all(sys.argv[1])
