"""Building libglm_trt_plugins.so: kernels ahead of time, generated C++, a C++17 compiler.

    python -m glm_trt.plugins.build --output build/plugins

No GPU, nvcc or CUDA toolkit: Triton compiles the kernels, its wheel has the CUDA headers, and
TensorRT's headers come from `TENSORRT_ROOT`, the system, or a wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import glm_trt
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.model.files import write_atomically
from glm_trt.plugins.common.aot import Cubin, Variant, compile_variant, variants
from glm_trt.plugins.common.codegen import (
    KernelTable,
    contract_header,
    kernels_assembly,
    operators_cpp,
)
from glm_trt.plugins.common.launch import Plan
from glm_trt.plugins.headers import cuda_headers, tensorrt_headers
from glm_trt.plugins.library import LIBRARY

OPERATORS = (
    "moe_routing",
    "moe_experts",
    "indexer_topk",
    "sparse_mla",
    "causal_mla",
    "linear_attention",
    "causal_conv_with_state",
    "fp8_linear",
    "fp8_moe_experts",
    "nvfp4_linear",
    "nvfp4_moe_experts",
)
SOURCES = ("driver.cpp", "launch.cpp", "plugin.cpp", "creator.cpp", "library.cpp")
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
         "-fvisibility=hidden", "-static-libstdc++", "-static-libgcc")  # fmt: skip


class BuildError(GlmTrtError):
    """The library could not be built."""


def load_plans() -> list[tuple[Plan, Mapping[str, Any]]]:
    """Every operator's launch plan with its Triton functions by name."""
    plans: list[tuple[Plan, Mapping[str, Any]]] = []
    for name in OPERATORS:
        plan = import_module(f"glm_trt.plugins.{name}.plan").PLAN
        plans.append((plan, vars(import_module(f"glm_trt.plugins.{name}.kernel"))))
    return plans


def build_library(output: Path, jobs: int | None = None, quiet: bool = False) -> Path:
    """Build `output`/libglm_trt_plugins.so unless it is there, made of the same; its path.

    Beside it are `kernels.json` (which kernel each image is, by SHA-256) and the generated source.

    Raises
    ------
    BuildError
        If a kernel does not compile, or the C++ does not.
    MissingCapabilityError
        If there is no C++ compiler, Triton or TensorRT header.
    """
    began = time.monotonic()
    plans = load_plans()
    cubins = _compile_all(plans, output / "cache", jobs or os.cpu_count() or 1, quiet)
    table = KernelTable(cubins)
    generated = output / "generated"
    write_atomically(
        generated / "operators.cpp", operators_cpp(plans, table, glm_trt.__version__).encode()
    )
    files = {}
    for i, cubin in enumerate(table.kernels):
        files[i] = f"kernel_{i}.cubin"
        write_atomically(generated / files[i], cubin.image)
    write_atomically(generated / "kernels.S", kernels_assembly(table, files).encode())
    for plan, _ in plans:
        header = generated / "glm_trt" / f"{plan.contract.torch_name}.h"
        write_atomically(header, contract_header(plan.contract, plan.limits).encode())
    write_atomically(output / "kernels.json", _description(cubins).encode())
    library = output / LIBRARY
    key = _key(generated, files)
    if not library.is_file() or _stored_key(library) != key:
        _compile_cpp(generated, library)
        write_atomically(library.with_suffix(".key"), f"{key} {_sha256(library)}".encode())
    if not quiet:
        size = library.stat().st_size / 1e6
        print(f"{library}: {size:.1f} MB, {len(table.kernels)} kernels, "
              f"{time.monotonic() - began:.1f} s")  # fmt: skip
    return library


def _compile_all(
    plans: Sequence[tuple[Plan, Mapping[str, Any]]], cache: Path, jobs: int, quiet: bool
) -> dict[Variant, Cubin]:
    work = {
        of: plan.contract.torch_name for plan, kernels in plans for of in variants(plan, kernels)
    }
    done: dict[Variant, Cubin] = {}
    # Forked: a Python that is started anew would look for its modules in the current folder.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        results = pool.map(_compile_one, work, work.values(), [cache] * len(work), chunksize=4)
        for i, (of, cubin) in enumerate(zip(work, results, strict=True), 1):
            done[of] = cubin
            if not quiet and (i % 50 == 0 or i == len(work)):
                print(f"plugins: {i} of {len(work)} kernels", file=sys.stderr, flush=True)
    return done


def _compile_one(of: Variant, operator: str, cache: Path) -> Cubin:
    kernels = vars(import_module(f"glm_trt.plugins.{operator}.kernel"))
    try:
        return compile_variant(of, kernels, cache)
    except Exception as error:
        # Triton's errors do not survive the way back to the parent process.
        raise BuildError(f"{operator}: {of.function} for {of.target}: {error}") from None


def _compile_cpp(generated: Path, library: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise MissingCapabilityError("no C++ compiler: install g++, or set CXX")
    cpp = Path(__file__).resolve().parent / "common" / "cpp"
    temporary = library.with_name(f".{library.name}.tmp")
    command = [
        compiler, *FLAGS, f"-I{cpp}", f"-isystem{tensorrt_headers()}", f"-isystem{cuda_headers()}",
        f"-Wl,--version-script={cpp / 'exports.map'}", "-Wl,--build-id=none", "-Wl,-z,defs",
        f"-Wl,-soname,{LIBRARY}", f"-ffile-prefix-map={cpp}=cpp", "-o", str(temporary.resolve()),
        *(str(cpp / source) for source in SOURCES), "operators.cpp", "kernels.S", "-ldl",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=generated, capture_output=True, text=True, check=False)
    if result.returncode:
        temporary.unlink(missing_ok=True)
        raise BuildError(f"{compiler} failed:\n{result.stderr[-4000:]}")
    temporary.replace(library)


def _description(cubins: Mapping[Variant, Cubin]) -> str:
    entries = {
        cubin.sha256: {
            "function": of.function, "target": of.target, "signature": of.signature,
            "constants": of.constants, "options": of.options, "shared_bytes": cubin.shared_bytes,
        }
        for of, cubin in cubins.items()
    }  # fmt: skip
    return json.dumps(dict(sorted(entries.items())), indent=1)


def _key(generated: Path, files: Mapping[int, str]) -> str:
    digest = hashlib.sha256(repr((FLAGS, tensorrt_headers().name)).encode())
    cpp = Path(__file__).resolve().parent / "common" / "cpp"
    names = [generated / "operators.cpp", generated / "kernels.S", *sorted(cpp.iterdir())]
    for path in [*names, *(generated / name for name in files.values())]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _stored_key(library: Path) -> str | None:
    path = library.with_suffix(".key")
    if not path.is_file():
        return None
    key, _, digest = path.read_text().partition(" ")
    return key if digest == _sha256(library) else None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """The command of this module; its exit codes are those of `glm-trt`."""
    parser = argparse.ArgumentParser(description="Build libglm_trt_plugins.so.")
    parser.add_argument("--output", type=Path, default=Path("build/plugins"), metavar="DIR")
    parser.add_argument("--jobs", type=int, help="kernels compiled at a time (default: all cores)")
    options = parser.parse_args()
    try:
        build_library(options.output, options.jobs)
    except GlmTrtError as error:
        print(f"plugins: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
