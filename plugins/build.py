"""Building libglm_trt_plugins.so: kernels ahead of time, generated C++, a C++17 compiler.

`python -m glm_trt.plugins` builds the whole library, or one with the kernels of some targets;
`glm_trt.engines.build.plugins` one with the kernels that a bundle needs.

No GPU, nvcc or CUDA toolkit: Triton compiles the kernels, its wheel has the CUDA headers, and
TensorRT's headers come from `TENSORRT_ROOT`, the system, or a wheel.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock

import glm_trt
from glm_trt.model.files import sha256_of, write_atomically
from glm_trt.plugins.common.aot import Cubin, Variant, compile_variant, variants
from glm_trt.plugins.common.codegen import (
    KernelTable,
    contract_header,
    kernels_assembly,
    operators_cpp,
)
from glm_trt.plugins.common.launch import Launches
from glm_trt.plugins.common.selection import WHOLE, Selection
from glm_trt.plugins.folders import CONTRACTS, part_of
from glm_trt.plugins.library import build_key, is_current, library_place
from glm_trt.plugins.link import BuildError, link_library

CACHE = "cache"  # in the folder that libraries are built in: kernels and object files by content


def load_launches() -> list[tuple[Launches, Mapping[str, Any]]]:
    """Every operator's launches with its Triton functions by name."""
    return [(part_of(name, "launch").LAUNCHES, vars(part_of(name, "kernel"))) for name in CONTRACTS]


def build_library(
    output: Path, selection: Selection = WHOLE, jobs: int | None = None, quiet: bool = False
) -> Path:
    """Build the library of a selection in `output`, unless it is there, made of the same; its path.

    The whole one is `output`/libglm_trt_plugins.so, any other in a folder of its own below. Beside
    it are `kernels.json` (which kernel each image is, by SHA-256) and the generated source. One
    process at a time builds in `output`; others wait for it.

    Raises
    ------
    BuildError
        If a kernel does not compile, or the C++ does not.
    MissingCapabilityError
        If there is no C++ compiler, Triton or TensorRT header.
    """
    library, key = library_place(output, selection), build_key(selection)
    library.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output / ".lock"):
        if not is_current(library, key):
            _build(output / CACHE, library, selection, jobs or os.cpu_count() or 1, quiet)
            write_atomically(library.with_suffix(".key"), f"{key} {sha256_of(library)}".encode())
    return library


def _build(cache: Path, library: Path, selection: Selection, jobs: int, quiet: bool) -> None:
    began = time.monotonic()
    all_launches = load_launches()
    cubins = _compile_all(all_launches, selection, cache, jobs, quiet)
    table = KernelTable(cubins)
    generated = library.parent / "generated"
    shutil.rmtree(generated, ignore_errors=True)
    source = operators_cpp(all_launches, table, glm_trt.__version__, selection)
    write_atomically(generated / "operators.cpp", source.encode())
    files = {i: f"kernel_{i}.cubin" for i in range(len(table.kernels))}
    for i, cubin in enumerate(table.kernels):
        (generated / files[i]).write_bytes(cubin.image)
    write_atomically(generated / "kernels.S", kernels_assembly(table, files).encode())
    for launches, _ in all_launches:
        header = generated / "glm_trt" / f"{launches.contract.torch_name}.h"
        write_atomically(header, contract_header(launches.contract, launches.limits).encode())
    write_atomically(library.parent / "kernels.json", _description(cubins).encode())
    link_library(cache, generated, library)
    if not quiet:
        size = library.stat().st_size / 1e6
        print(f"{library}: {size:.1f} MB, {len(table.kernels)} kernels, "
              f"{time.monotonic() - began:.1f} s", file=sys.stderr)  # fmt: skip


def _compile_all(
    all_launches: Sequence[tuple[Launches, Mapping[str, Any]]],
    selection: Selection,
    cache: Path,
    jobs: int,
    quiet: bool,
) -> dict[Variant, Cubin]:
    work = {
        of: launches.contract.torch_name
        for launches, kernels in all_launches
        for of in variants(launches, kernels, selection)
    }
    done: dict[Variant, Cubin] = {}
    # Triton's own cache, of every stage of a kernel, is of no use beside ours. Forked: a Python
    # that is started anew would look for its modules in the current folder.
    fork = multiprocessing.get_context("fork")
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(jobs, fork, _use_cache, (scratch,)) as pool,
    ):
        results = pool.map(_compile_one, work, work.values(), [cache] * len(work), chunksize=4)
        for i, (of, cubin) in enumerate(zip(work, results, strict=True), 1):
            done[of] = cubin
            if not quiet and (i % 50 == 0 or i == len(work)):
                print(f"plugins: {i} of {len(work)} kernels", file=sys.stderr, flush=True)
    return done


def _use_cache(directory: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = directory


def _compile_one(of: Variant, operator: str, cache: Path) -> Cubin:
    kernels = vars(part_of(operator, "kernel"))
    try:
        return compile_variant(of, kernels, cache)
    except Exception as error:
        # Triton's errors do not survive the way back to the parent process.
        raise BuildError(f"{operator}: {of.function} for {of.target}: {error}") from None


def _description(cubins: Mapping[Variant, Cubin]) -> str:
    entries = {
        cubin.sha256: {
            "function": of.function, "target": of.target, "signature": of.signature,
            "constants": of.constants, "options": of.options, "shared_bytes": cubin.shared_bytes,
        }
        for of, cubin in cubins.items()
    }  # fmt: skip
    return json.dumps(dict(sorted(entries.items())), indent=1)
