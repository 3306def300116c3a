"""Building the C++ runtime with CMake: `python -m glm_trt.engines.build_runtime`.

CMake and the JSON headers come from their wheels, or from the system.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from glm_trt.model.child_python import python
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.plugins.headers import cuda_headers, tensorrt_headers

SOURCE = Path(__file__).resolve().parent / "cpp"


class RuntimeBuildError(GlmTrtError):
    """The C++ runtime could not be built."""


def build_runtime(output: Path, *, sanitize: bool = False, tests: bool = False) -> Path:
    """Configure and build in `output`, which is returned; what is up to date is not built again.

    Raises
    ------
    RuntimeBuildError
        If CMake or the compiler fails; the message has the last lines of what they said.
    MissingCapabilityError
        If there is no CMake, or TensorRT's or CUDA's headers are missing.
    """
    cmake = cmake_command()
    options = {
        "GLM_TRT_SANITIZE": "ON" if sanitize else "OFF",
        "GLM_TRT_BUILD_TESTS": "ON" if tests else "OFF",
        # Sanitizers want line numbers, and tests of them no more optimisation than that.
        "CMAKE_BUILD_TYPE": "RelWithDebInfo" if sanitize else "Release",
    }
    options["TENSORRT_INCLUDE_DIR"] = str(tensorrt_headers())
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
    parser.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    parser.add_argument("--tests", action="store_true", help="with the tests and fuzzers")
    options = parser.parse_args()
    try:
        build_runtime(options.output, sanitize=options.sanitize, tests=options.tests)
    except GlmTrtError as error:
        print(f"runtime: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.output}: built")
    return 0


if __name__ == "__main__":
    sys.exit(main())
