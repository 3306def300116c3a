"""`glm-trt-run` on the stand-ins for the driver and for TensorRT: the tiny bundle's engines give
the tokens that Python gives on onnxruntime.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from on_stand_ins import glm_trt_on_stand_ins, library_path

PROMPT = "5,6,7"


def expect_the_same(bundle: Path, runtime_build: Path, count: int, **settings: str) -> None:
    arguments = [str(bundle), "--input-ids", PROMPT, "--max-new-tokens", str(count), "--json"]
    reference = glm_trt_on_stand_ins("run", *arguments)
    done = subprocess.run(
        [runtime_build / "glm-trt-run", *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"LD_LIBRARY_PATH": library_path()} | settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["token_ids"] == json.loads(reference.stdout)["token_ids"]
    assert not done.stderr


@pytest.mark.parametrize("seeds", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_the_same_tokens(float32_bundle: Path, runtime_build: Path, seeds: int) -> None:
    for seed in range(seeds):
        expect_the_same(float32_bundle, runtime_build, 16, STAND_IN_SEED=str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plugin_bundle", "hybrid_bundle"])
def test_the_same_tokens_with_plugins(
    name: str, library: Path, runtime_build: Path, request: pytest.FixtureRequest
) -> None:
    bundle: Path = request.getfixturevalue(name)
    kernels = library.parent / "kernels.json"
    expect_the_same(bundle, runtime_build, 4, STAND_IN_KERNELS=str(kernels))
