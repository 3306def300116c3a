"""Building the C++ runtime with CMake: `python -m glm_trt.engines.build.runtime`.

CMake and the JSON headers come from their wheels, or from the system.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from glm_trt.model.child_python import python
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.plugins.headers import cuda_headers, tensorrt_headers

SOURCE = Path(__file__).resolve().parents[1] / "cpp"


class RuntimeBuildError(GlmTrtError):
    """The C++ runtime could not be built."""


@dataclass(frozen=True)
class TensorRtHeaders:
    """TensorRT's headers, and what a runtime built with them opens: one flavour and major."""

    place: Path
    flavour: str
    version: str

    @property
    def library(self) -> str:
        """The name that is opened."""
        name = "libtensorrt_rtx.so" if self.flavour == "tensorrt-rtx" else "libnvinfer.so"
        return f"{name}.{self.version.partition('.')[0]}"

    def described(self) -> str:
        """For whoever builds."""
        other = "tensorrt" if self.flavour == "tensorrt-rtx" else "tensorrt-rtx"
        return (
            f"headers of {self.flavour} {self.version} in {self.place}: opens {self.library} "
            f"(--backend {self.flavour}); for {other}, or another major version, set TENSORRT_ROOT "
            f"to that SDK"
        )


def find_headers(place: Path | None = None) -> TensorRtHeaders:
    """What the headers in `place` are, or those that a build finds.

    Raises
    ------
    MissingCapabilityError
        If there are none, or they do not say their version.
    """
    place = place or tensorrt_headers()
    path = place / "NvInferVersion.h"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for flavour, names in (
        ("tensorrt-rtx", ("TRT_{}_RTX",)),
        ("tensorrt", ("TRT_{}_ENTERPRISE", "NV_TENSORRT_{}")),
    ):
        for name in names:
            parts = [
                re.search(rf"#define {name.format(part)} (\d+)", text)
                for part in ("MAJOR", "MINOR", "PATCH")
            ]
            found = [part[1] for part in parts if part]
            if len(found) == len(parts):
                return TensorRtHeaders(place, flavour, ".".join(found))
    raise MissingCapabilityError(f"{path}: does not say which version of TensorRT it is of")


def build_runtime(output: Path, *, sanitize: str = "", tests: bool = False) -> Path:
    """Configure and build in `output`, which is returned; what is up to date is not built again.

    `sanitize` is "address" (with UBSan) or "thread"; then the tests alone are built.

    Raises
    ------
    RuntimeBuildError
        If CMake or the compiler fails; the message has the last lines of what they said.
    MissingCapabilityError
        If there is no CMake, or TensorRT's or CUDA's headers are missing.
    """
    cmake = cmake_command()
    options = {
        "GLM_TRT_SANITIZE": sanitize or "OFF",
        "GLM_TRT_BUILD_TESTS": "ON" if tests else "OFF",
        # Sanitizers want line numbers, and tests of them no more optimisation than that.
        "CMAKE_BUILD_TYPE": "RelWithDebInfo" if sanitize else "Release",
    }
    options["TENSORRT_INCLUDE_DIR"] = str(find_headers().place)
    options["Python3_EXECUTABLE"] = python()[0]
    options["CUDA_INCLUDE_DIR"] = str(cuda_headers())
    spec = find_spec("nlohmann_json")
    if spec is not None and spec.origin is not None:
        options["GLM_TRT_JSON_INCLUDE_DIR"] = str(Path(spec.origin).parent / "include")
    configure = [*cmake, "-S", str(SOURCE), "-B", str(output)]
    _run([*configure, *(f"-D{name}={value}" for name, value in options.items())])
    _run([*cmake, "--build", str(output), "--parallel", str(len(os.sched_getaffinity(0)))])
    return output


def cmake_command() -> list[str]:
    """How CMake is called.

    Raises
    ------
    MissingCapabilityError
        If there is none.
    """
    if find_spec("cmake") is not None:  # the wheel: of the version that everything was tried with
        return [*python("-m", "cmake")]
    if shutil.which("cmake"):
        return ["cmake"]
    raise MissingCapabilityError("CMake is missing: run `make setup`, or install it")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise RuntimeBuildError(f"{' '.join(command[:5])} failed:\n{said}")


def main() -> int:
    """The command of this module; its exit codes are those of `glm-trt`."""
    parser = argparse.ArgumentParser(description="Build the C++ runtime.")
    parser.add_argument("--output", type=Path, default=Path("build/runtime"), metavar="DIR")
    parser.add_argument("--sanitize", choices=("address", "thread"), default="",
                        help="the tests alone, with ASan and UBSan or with TSan")  # fmt: skip
    parser.add_argument("--tests", action="store_true", help="with the tests and fuzzers")
    options = parser.parse_args()
    try:
        build_runtime(options.output, sanitize=options.sanitize, tests=options.tests)
    except GlmTrtError as error:
        print(f"runtime: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.output}: built with {find_headers().described()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
