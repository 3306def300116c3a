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
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            reason = _reason(error, module)
            raise MissingCapabilityError(
                f"{what} needs {module}, {reason}: pip install 'glm-trt[{extra}]'"
            ) from None


def require_installed(what: str, extra: str, *modules: str) -> None:
    """As `require`, without loading what takes seconds to load."""
    for module in modules:
        if not _is_there(module):
            raise MissingCapabilityError(
                f"{what} needs {module}, which is not installed: pip install 'glm-trt[{extra}]'"
            )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of the package that it is in
        return False


def _reason(error: Exception, module: str) -> str:
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return "which is not installed"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"which cannot be loaded ({first})"


def installed(distribution: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
