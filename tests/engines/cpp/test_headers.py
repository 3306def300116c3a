"""The headers that the C++ is compiled with: which they are, and that each kind does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from glm_trt.engines.build.runtime import build_runtime, find_headers
from glm_trt.model.errors import MissingCapabilityError
from glm_trt.plugins.headers import cuda_headers, tensorrt_headers

ROOT = Path(__file__).parents[3]
CPP = ROOT / "engines" / "cpp"
# Folders of headers beside those that a build finds, such as an SDK's of version 11.
OTHERS = [Path(x) for x in os.environ.get("GLM_TRT_TEST_HEADERS", "").split(":") if x]
# What TensorRT-RTX has more, by NVIDIA's sample of it (samples/apiUsage in NVIDIA/TensorRT-RTX).
RTX_STRATEGY = """
enum class DynamicShapesKernelSpecializationStrategy : int32_t { kLAZY, kEAGER, kNONE };
class IRuntimeConfig : public INoCopy
{
public:
    void setDynamicShapesKernelSpecializationStrategy(
        DynamicShapesKernelSpecializationStrategy) noexcept;
"""


def compiles(source: Path, headers: Path, *flags: str) -> None:
    done = subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *flags,
         f"-isystem{headers}", f"-isystem{cuda_headers()}", str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:3000]


def like_rtx(place: Path) -> Path:
    """The headers that there are, changed in what TensorRT-RTX's are known to differ."""
    shutil.copytree(tensorrt_headers(), place)
    version = place / "NvInferVersion.h"
    text = version.read_text().replace("_ENTERPRISE", "_RTX")
    version.write_text(re.sub(r"TRT_MAJOR_RTX \d+", "TRT_MAJOR_RTX 1", text))
    runtime = place / "NvInferRuntime.h"
    text = runtime.read_text()
    assert text.count("class IRuntimeConfig : public INoCopy\n{\npublic:\n") == 1
    runtime.write_text(
        text.replace("class IRuntimeConfig : public INoCopy\n{\npublic:\n", RTX_STRATEGY)
    )
    return place


def test_a_build_says_which_it_found(tmp_path: Path) -> None:
    rtx = find_headers(like_rtx(tmp_path / "rtx"))
    assert (rtx.flavour, rtx.library) == ("tensorrt-rtx", "libtensorrt_rtx.so.1")
    version = tmp_path / "NvInferVersion.h"
    for text in ("TRT_{}_ENTERPRISE", "NV_TENSORRT_{}"):
        lines = [f"#define {text.format(x)} {i}" for x, i in
                 (("MAJOR", 11), ("MINOR", 4), ("PATCH", 0))]  # fmt: skip
        version.write_text("\n".join(lines) + "\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n")
        found = find_headers(tmp_path)
        assert (found.flavour, found.version) == ("tensorrt", "11.4.0")
        assert found.described() == (
            f"headers of tensorrt 11.4.0 in {tmp_path}: opens libnvinfer.so.11 (--backend "
            f"tensorrt); for tensorrt-rtx, or another major version, set TENSORRT_ROOT to that SDK"
        )
    version.write_text("#define NV_TENSORRT_MAJOR 11\n")
    with pytest.raises(MissingCapabilityError, match=r"NvInferVersion\.h: does not say"):
        find_headers(tmp_path)


def test_the_runtime_compiles_for_rtx(tmp_path: Path) -> None:
    """As far as that can be known without its headers, which no public repository has."""
    source = CPP / "src" / "tensorrt.cpp"
    compiles(source, like_rtx(tmp_path / "rtx"), *runtime_flags())


def runtime_flags() -> list[str]:
    import nlohmann_json

    json = Path(str(nlohmann_json.__file__)).parent / "include"
    return [f"-I{CPP / 'include'}", f"-I{CPP / 'src'}", f"-isystem{json}"]


@pytest.mark.slow
@pytest.mark.parametrize("headers", OTHERS, ids=str)
def test_everything_with_other_headers(
    headers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin library compiles; the runtime does, and runs on stand-ins of that layout."""
    for name in ("creator", "library", "plugin"):
        compiles(ROOT / "plugins" / "common" / "cpp" / f"{name}.cpp", headers)
    (tmp_path / "include").symlink_to(headers)
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    build = build_runtime(tmp_path / "build", tests=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(build / "tests" / "driver"), "STAND_IN_TARGET": "sm90",
    }  # fmt: skip
    done = subprocess.run(
        [build / "tests" / "whole"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (build / "tests" / "driver" / find_headers().library).is_file()
