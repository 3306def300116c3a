"""What `import glm_trt` offers, and that it offers it without loading anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

import glm_trt
from glm_trt.engines.python.request import GenerateOptions
from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.python.session import Session


def test_names() -> None:
    assert glm_trt.GenerateOptions is GenerateOptions
    assert glm_trt.Sampling is Sampling
    assert glm_trt.Session is Session
    assert set(glm_trt.__all__) <= set(dir(glm_trt))
    for name in glm_trt.__all__:
        assert getattr(glm_trt, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Sesion'"):
        _ = glm_trt.Sesion


def test_import_is_light() -> None:
    heavy = "{'numpy', 'torch', 'onnx', 'onnxruntime', 'rich', 'glm_trt.model'} & set(sys.modules)"
    script = f"import sys, glm_trt; assert not {heavy}; dir(glm_trt); assert not {heavy}"
    subprocess.run([sys.executable, "-c", script], check=True)
