"""Starting a child Python that imports what this one would, whatever lies in the current folder.

`python -m` and `python -c` look for modules in the current folder first: an `onnx.py` of the
user's there would be run in place of the package.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The child runs this very package, though it may be importable here by the current folder alone.
_START = """\
import importlib.util, runpy, sys
_, place, module, *rest = sys.argv
spec = importlib.util.spec_from_file_location("glm_trt", place)
sys.modules["glm_trt"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
sys.argv[1:] = rest
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def python(*arguments: str) -> tuple[str, ...]:
    """The command of a Python that has the current folder not in its path; PYTHONPATH and the
    other variables mean what they mean here.
    """
    flags = ["-I" if sys.flags.isolated else "-P"]
    flags += ["-E"] * sys.flags.ignore_environment + ["-s"] * sys.flags.no_user_site
    return (sys.executable, *flags, *arguments)


def python_module(module: str) -> tuple[str, ...]:
    """The command that runs a module of glm_trt; its arguments may follow."""
    package = Path(__file__).parent.parent / "__init__.py"  # not resolved: model/ is a link there
    return python("-c", _START, str(package), module)
