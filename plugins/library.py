"""Finding the built plugin library."""

from __future__ import annotations

from pathlib import Path

from glm_trt.model.errors import MissingCapabilityError

LIBRARY = "libglm_trt_plugins.so"


def find_library(path: Path | None = None) -> Path:
    """`path`, or where an installed package or a checkout after `make plugins` has the library.

    Raises
    ------
    MissingCapabilityError
        If it is in none of these places.
    """
    package = Path(__file__).resolve().parent
    places = [path] if path else [package / LIBRARY, package.parent / "build/plugins" / LIBRARY]
    for place in places:
        if place.is_file():
            return place
    raise MissingCapabilityError(
        f"{LIBRARY} is not at {' or '.join(map(str, places))}: build it (make plugins), or build "
        "engines without it (--no-plugins)"
    )
