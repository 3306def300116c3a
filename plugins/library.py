"""The built plugin library: where it lies, which kernels it holds, whether it is up to date.

Nothing here loads torch or Triton: a library that is up to date is found without them.
"""

from __future__ import annotations

import hashlib
import mmap
from importlib.metadata import version
from pathlib import Path

from glm_trt import plugins
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.model.files import sha256_of
from glm_trt.plugins.common.selection import WHOLE, Selection
from glm_trt.plugins.headers import tensorrt_headers

LIBRARY = "libglm_trt_plugins.so"
# How a library says what it holds; up to a zero byte.
MARK = "glm_trt selection: "
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror",
         "-fvisibility=hidden")  # fmt: skip
WHOLE_ONE = "build the whole library with `make plugins`"


def find_library(path: Path | None = None) -> Path:
    """`path`, or where an installed package or a checkout after `make plugins` has the library.

    A library that holds only some kernels is found by its path alone.

    Raises
    ------
    MissingCapabilityError
        If it is in none of these places.
    """
    package = Path(__file__).resolve().parent
    places = [path] if path else [package / LIBRARY, package.parent / "build/plugins" / LIBRARY]
    for place in places:
        if place.is_file():
            if path is None:
                require_whole(place)
            return place
    raise MissingCapabilityError(
        f"{LIBRARY} is not at {' or '.join(map(str, places))}: build it (make plugins), or build "
        "engines without it (--no-plugins)"
    )


def require_whole(library: Path) -> None:
    """Raise MissingCapabilityError unless the library holds every kernel."""
    if not selection_of(library).whole:
        raise MissingCapabilityError(f"{library}: holds only some of the kernels; {WHOLE_ONE}")


def selection_of(library: Path) -> Selection:
    """Which kernels a library holds.

    Raises
    ------
    GlmTrtError
        If the file does not say so: it is no plugin library, or one of an older version.
    """
    with library.open("rb") as file:
        if file.seek(0, 2):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                begin = content.find(MARK.encode())
                if begin >= 0:
                    end = content.find(b"\0", begin)
                    text = content[begin + len(MARK) : end].decode()
                    return Selection.from_json(text)
    raise GlmTrtError(
        f"{library}: not a plugin library of this version; build it anew (make plugins)"
    )


def library_place(output: Path, selection: Selection) -> Path:
    """Where a build in `output` puts the library of a selection: never two in one place."""
    return output / LIBRARY if selection.whole else output / "partial" / selection.name / LIBRARY


def build_key(selection: Selection) -> str:
    """A digest of all that a library is made of."""
    made_of = (FLAGS, tensorrt_headers().name, version("triton"), version("glm-trt"))
    digest = hashlib.sha256(repr(made_of).encode() + selection.to_json().encode())
    for package in map(Path, plugins.__path__):  # one, but for operators that are elsewhere
        for path in sorted([*package.rglob("*.py"), *package.glob("common/cpp/*")]):
            digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def is_current(library: Path, key: str) -> bool:
    """Whether a build left this very file, from what `key` stands for."""
    path = library.with_suffix(".key")
    if not library.is_file() or not path.is_file():
        return False
    return path.read_text() == f"{key} {sha256_of(library)}"


def current_library(output: Path, needed: Selection) -> Path | None:
    """A library in `output` that is up to date and holds what is needed; the whole one first."""
    for selection in (WHOLE, needed):
        library = library_place(output, selection)
        if is_current(library, build_key(selection)):
            return library
    return None
