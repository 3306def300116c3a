"""A wheel with the built libraries: `python -m glm_trt.engines.build.wheel --output dist`.

The plugin library lies where `find_library` looks for it; the C++ runtime, with headers and
what CMake and pkg-config read, in `glm_trt/engines/runtime`. `--python-only` makes one without
either, for any machine: it exports, validates and runs on onnxruntime.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from glm_trt.model.child_python import python
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.plugins.library import LIBRARY, require_whole

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("glm_trt", "model", "plugins", "export", "engines", "validate")
FILES = ("pyproject.toml", "README.md", "LICENSE")


class WheelError(GlmTrtError):
    """The wheel could not be built."""


@dataclass(frozen=True)
class Libraries:
    """What was built.

    Parameters
    ----------
    plugins : the plugin library.
    runtime : the tree that `cmake --install` made of the C++ runtime.
    """

    plugins: Path
    runtime: Path


def build_wheel(output: Path, libraries: Libraries | None) -> Path:
    """Build the wheel in `output`, with the libraries if there are any; its path.

    Raises
    ------
    MissingCapabilityError
        If one of them is not there, or the library lacks kernels.
    WheelError
        If setuptools refuses.
    """
    if libraries:
        _require(libraries)
    with tempfile.TemporaryDirectory() as directory:
        # Of a copy: what is built never lies among the sources.
        source = Path(directory)
        for name in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "runtime")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        for name in FILES:
            shutil.copy(ROOT / name, source)
        command = [
            *python("-m", "pip", "wheel"), "--no-deps", "--no-build-isolation",
            "--wheel-dir", str(output), str(source),
        ]  # fmt: skip
        if libraries:
            shutil.copy(libraries.plugins, source / "plugins" / LIBRARY)
            shutil.copytree(libraries.runtime, source / "engines" / "runtime")
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            command.append(f"--config-settings=--build-option=--plat-name={platform}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WheelError(f"pip wheel failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return max(output.glob("glm_trt-*.whl"), key=lambda path: path.stat().st_mtime)


def _require(libraries: Libraries) -> None:
    runtime = libraries.runtime / "include"
    for path, job in ((libraries.plugins, "make plugins"), (runtime, "make install")):
        if not path.exists():
            raise MissingCapabilityError(f"{path}: missing; build it first ({job})")
    require_whole(libraries.plugins)


def main() -> int:
    """The command of this module; its exit codes are those of `glm-trt`."""
    parser = argparse.ArgumentParser(description="Build a wheel with the built libraries.")
    parser.add_argument("--output", type=Path, default=Path("dist"), metavar="DIR")
    parser.add_argument("--plugins", type=Path, default=Path("build/plugins") / LIBRARY)
    parser.add_argument("--runtime", type=Path, default=Path("build/runtime-installed"))
    parser.add_argument("--python-only", action="store_true", help="without either of them")
    options = parser.parse_args()
    libraries = None if options.python_only else Libraries(options.plugins, options.runtime)
    try:
        wheel = build_wheel(options.output, libraries)
    except GlmTrtError as error:
        print(f"wheel: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
