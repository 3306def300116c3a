"""Compiling the library's C++ and linking it; what does not change from library to library once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.plugins.headers import cuda_headers, tensorrt_headers
from glm_trt.plugins.library import FLAGS, LIBRARY

CPP = Path(__file__).resolve().parent / "common" / "cpp"


class BuildError(GlmTrtError):
    """The library could not be built."""


def link_library(cache: Path, generated: Path, library: Path) -> None:
    """Make `library` of the C++ of every library and the `generated` operators.cpp and kernels.S.

    Object files of the former are kept in `cache`, by content. Raises BuildError where the compiler
    refuses, MissingCapabilityError where there is none, or no header of TensorRT.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise MissingCapabilityError("no C++ compiler: install g++, or set CXX")
    sources = [*sorted(CPP.glob("*.cpp")), generated / "operators.cpp"]
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(lambda source: _compile(compiler, cache, source), sources))
    temporary = library.with_name(f".{library.name}.tmp").resolve()
    command = [
        compiler, *FLAGS, "-shared", "-static-libstdc++", "-static-libgcc",
        f"-Wl,--version-script={CPP / 'exports.map'}", "-Wl,--build-id=none", "-Wl,-z,defs",
        f"-Wl,-soname,{LIBRARY}", "-o", str(temporary),
        *map(str, objects), "kernels.S", "-ldl",
    ]  # fmt: skip
    try:
        _run(command, generated)
        temporary.replace(library)
    finally:
        temporary.unlink(missing_ok=True)


def _compile(compiler: str, cache: Path, source: Path) -> Path:
    """The object file of `source`; named by all that it is made of."""
    command = [
        compiler, *FLAGS, f"-I{CPP}", f"-isystem{tensorrt_headers()}", f"-isystem{cuda_headers()}",
        f"-ffile-prefix-map={CPP}=cpp", "-c", source.name,
    ]  # fmt: skip
    digest = hashlib.sha256(repr(command).encode())
    for path in [*sorted(CPP.glob("*.h")), source]:
        digest.update(path.name.encode() + path.read_bytes())
    made = (cache / f"{digest.hexdigest()}.o").resolve()
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        temporary = made.with_suffix(".tmp")
        _run([*command, "-o", str(temporary)], source.parent)
        temporary.replace(made)
    return made


def _run(command: Sequence[str], directory: Path) -> None:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{command[0]} failed:\n{result.stderr[-4000:]}")
