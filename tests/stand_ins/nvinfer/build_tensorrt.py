"""The stand-in for TensorRT, built: libnvinfer.so.10 and libtensorrt_rtx.so.1 in one folder.

    python tests/stand_ins/nvinfer/build_tensorrt.py FOLDER

A build is kept by what it is made of, under `build/stand-ins`; only g++ is needed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from glm_trt.plugins.headers import cuda_headers, tensorrt_headers

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
STUBS = ROOT / "tests" / "stand_ins" / "header_stubs.py"
# Library, flavour, version: as the Python modules have them.
LIBRARIES = (("libnvinfer.so.10", "tensorrt", "11.4.0.106"),
             ("libtensorrt_rtx.so.1", "tensorrt_rtx", "1.7.1.116"))  # fmt: skip
OPTIONS = ("-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations",
           "-Wno-unused-parameter", "-fPIC", "-fvisibility=hidden")  # fmt: skip


def build_tensorrt(directory: Path | None = None) -> Path:
    """The folder with both libraries: `directory`, or one under `build/stand-ins`.

    Raises
    ------
    subprocess.CalledProcessError
        If g++ refuses a source.
    """
    sources = sorted(HERE.glob("*.cpp"))
    key = hashlib.sha256(repr((OPTIONS, LIBRARIES, str(tensorrt_headers()))).encode())
    for path in (*sources, *sorted(HERE.glob("*.h")), STUBS):
        key.update(path.read_bytes())
    place = directory or ROOT / "build" / "stand-ins" / f"tensorrt-{key.hexdigest()[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):
        stamp = place / ".key"
        if not stamp.is_file() or stamp.read_text() != key.hexdigest():
            _compile(sources, place)
            stamp.write_text(key.hexdigest())
    return place


def _compile(sources: list[Path], place: Path) -> None:
    spec = find_spec("nlohmann_json")
    json = Path(str(spec.origin)).parent / "include" if spec else Path("/usr/include")
    with tempfile.TemporaryDirectory(dir=place) as name:
        scratch = Path(name)
        command = [sys.executable, str(STUBS), str(tensorrt_headers()), str(scratch / "stubs.h")]
        subprocess.run(command, check=True)
        includes = [f"-I{scratch}", *(f"-isystem{x}" for x in (tensorrt_headers(), cuda_headers(),
                                                                json))]  # fmt: skip
        objects = {path.stem: scratch / f"{path.stem}.o" for path in sources}
        for path in sources:
            if path.stem != "engine":
                subprocess.run(
                    ["g++", *OPTIONS, *includes, "-c", path, "-o", objects[path.stem]], check=True
                )
        for library, flavour, version in LIBRARIES:
            of = [f'-DSTAND_IN_FLAVOUR="{flavour}"', f'-DSTAND_IN_VERSION="{version}"']
            subprocess.run(
                ["g++", *OPTIONS, *includes, *of, "-c", HERE / "engine.cpp", "-o",
                 objects["engine"]], check=True,
            )  # fmt: skip
            subprocess.run(
                ["g++", "-shared", f"-Wl,-soname,{library}", *objects.values(), "-o",
                 scratch / library, "-ldl"], check=True,
            )  # fmt: skip
            shutil.move(scratch / library, place / library)


if __name__ == "__main__":
    print(build_tensorrt(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None))
