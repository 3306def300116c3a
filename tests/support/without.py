"""Python without some packages: `python without.py torch,triton -c CODE`, as if not installed.

Whoever imports one of them is named: the module of glm_trt that does, and its line.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import FrameType


class Absent:
    """A finder of modules that says that some are not there."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package = name.partition(".")[0]
        if package in self.names:
            text = f"No module named {package!r}; imported by {importer()}"
            raise ModuleNotFoundError(text, name=name)
        return None


def importer() -> str:
    """Module and line of the innermost code of glm_trt that is running."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] == "glm_trt":
            return f"{module}, line {frame.f_lineno}"
        frame = frame.f_back
    return "nobody in glm_trt"


if __name__ == "__main__":
    _, names, flag, code, *rest = sys.argv
    assert flag == "-c"
    sys.meta_path.insert(0, Absent(set(names.split(","))))
    sys.argv[:] = ["-c", *rest]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
