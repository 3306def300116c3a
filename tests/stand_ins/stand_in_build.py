"""Builds the stand-ins: g++ alone, once for each content of their sources."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from glm_trt.plugins.headers import cuda_headers

HERE = Path(__file__).parent
BUILT = HERE.parent.parent / "build" / "stand-ins"
FLAGS = ("-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden")


def build_driver(directory: Path = BUILT) -> Path:
    """The strict `libcuda.so.1`, in a folder of its own under `directory`.

    Processes find it by LD_LIBRARY_PATH, or load it by its path before anything looks for a driver.
    """
    sources = sorted((HERE / "driver").glob("*.cpp"))
    digest = hashlib.sha256(repr((FLAGS, sys.executable, str(HERE))).encode())
    for path in (*sources, *sorted((HERE / "driver").glob("*.h"))):
        digest.update(path.name.encode() + path.read_bytes())
    place = directory / f"driver-{digest.hexdigest()[:16]}"
    library = place / "libcuda.so.1"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):
        if not library.exists():
            _compile(sources, library)
    return library


def _compile(sources: list[Path], library: Path) -> None:
    definitions = (
        f'-DSTAND_IN_PYTHON_PATH="{sys.executable}"',
        f'-DSTAND_IN_EXECUTOR_PATH="{HERE / "executor.py"}"',
        f"-isystem{cuda_headers()}",
    )
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:

        def compiled(source: Path) -> str:
            made = str(Path(scratch) / f"{source.stem}.o")
            command = ["g++", *FLAGS, *definitions, "-c", str(source), "-o", made]
            subprocess.run(command, check=True)
            return made

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compiled, sources))
        linked = Path(scratch) / library.name
        subprocess.run(
            ["g++", "-shared", f"-Wl,-soname,{library.name}", "-Wl,-z,now", *objects,
             "-o", str(linked), "-ldl", "-lpthread"],
            check=True,
        )  # fmt: skip
        linked.rename(library)
