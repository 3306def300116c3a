"""What lies beside this package in an environment: whether it is there, and how to get it."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import PackageNotFoundError, version

from glm_trt.model.errors import MissingCapabilityError


def require(what: str, extra: str, *modules: str) -> None:
    """Import the modules that `what` needs.

    Raises
    ------
    MissingCapabilityError
        If one of them is not installed or cannot be loaded; it says so, and how to install
        `extra` of this package, which has them all.
    """
    require_installed(what, extra, *modules)
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise _missing(what, extra, module, f"cannot be loaded ({first})") from None


def require_installed(what: str, extra: str, *modules: str) -> None:
    """As `require`, without loading what takes seconds to load."""
    for module in modules:
        if not _is_there(module):
            raise _missing(what, extra, module, "is not installed")


def _missing(what: str, extra: str, module: str, why: str) -> MissingCapabilityError:
    return MissingCapabilityError(
        f"{what} needs {module}, which {why}: pip install 'glm-trt[{extra}]'"
    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of the package that it is in
        return False


def installed(distribution: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
