"""Caches written without `TensorScatter`: the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

import glm_trt
from glm_trt.engines.python import scatter

MODEL = """
<ir_version: 10, opset_import: ["" : 24]>
g (float[B, 1, C, 3] cache, float[B, 1, T, 3] update, int64[B] first) => (float[B, 1, C, 3] written)
{ written = TensorScatter <axis: int = -2, mode: string = "linear"> (cache, update, first) }
"""


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize(("tokens", "first"), [(1, [0, 4]), (3, [2, 0]), (5, [0, 0])])
def test_the_same_values(monkeypatch: pytest.MonkeyPatch, tokens: int, first: list[int]) -> None:
    monkeypatch.setattr(scatter, "has_tensor_scatter", lambda: False)
    rewritten = scatter.write_caches(onnx.parser.parse_model(MODEL))
    assert "TensorScatter" not in [node.op_type for node in rewritten.graph.node]
    onnx.checker.check_model(rewritten, full_check=True)
    random = np.random.default_rng(tokens)
    cache = random.standard_normal((2, 1, 5, 3), dtype=np.float32)
    update = random.standard_normal((2, 1, tokens, 3), dtype=np.float32)
    expected = cache.copy()
    for row, start in enumerate(first):
        expected[row, :, start : start + tokens] = update[row]
    feeds = {"cache": cache, "update": update, "first": np.array(first)}
    np.testing.assert_array_equal(run(rewritten, feeds), expected)


def test_a_bundle_gives_the_same_tokens(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[456, 2035, 834], [1, 2, 3, 4, 5]]
    with glm_trt.load(tiny_bundle) as runtime:
        expected = runtime.generate(prompts, max_new_tokens=12)
    monkeypatch.setattr(scatter, "has_tensor_scatter", lambda: False)
    with glm_trt.load(tiny_bundle) as runtime:
        assert runtime.generate(prompts, max_new_tokens=12) == expected


def test_left_alone_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scatter, "has_tensor_scatter", lambda: True)
    model = onnx.parser.parse_model(MODEL)
    assert scatter.write_caches(model) is model
