"""Marked engines with plugins belong to the runtime that has the plugins:

    python marked_program.py BUNDLE KIND

Inner values of a block beside plugins come out as they do on onnxruntime.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.engines.python.tensorrt_backend import open_backend
from glm_trt.export.bundle.read import Bundle

TOKENS = 3


def main() -> None:
    opened, kind = Bundle.open(Path(sys.argv[1])), sys.argv[2]
    block = next(x for x in opened.blocks if x.kind == kind)
    model = onnx.load(opened.graph_path(kind, "float32"))
    generator = np.random.default_rng(0)
    rope = (1, TOKENS, opened.config.qk_rope_head_dim // 2)
    inputs: dict[str, Any] = {
        "hidden": generator.standard_normal((1, TOKENS, opened.config.hidden_size)),
        "cos": np.ones(rope), "sin": np.zeros(rope), "past_lengths": np.zeros(1, np.int64),
        "lengths": np.full(1, TOKENS, np.int64),
    } | {x.name: np.zeros(x.shape(1, 150)) for x in opened.states(block)}  # fmt: skip
    inputs = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array
        for name, array in inputs.items() if name in {x.name for x in model.graph.input}
    }  # fmt: skip
    makers = {x.op_type: x.output[0] for x in model.graph.node}
    names = (makers["RMSNormalization"], makers["SparseMla"])
    backend = open_backend(opened, "tensorrt-rtx")
    plain = OnnxruntimeBackend(opened, rewrites=False)
    try:
        for subject in (backend, plain):
            subject.mark(kind, names)
        found, expected = backend.run_block(block, inputs), plain.run_block(block, inputs)
        assert found.keys() >= {*names}
        for name in names:
            error = np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()
            assert error < 1e-5, (name, error)
    finally:
        backend.close()


if __name__ == "__main__":
    main()
