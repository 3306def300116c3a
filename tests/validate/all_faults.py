"""The faults of `faults.py` and of every `faults_AREA.py` beside it."""

from importlib import import_module
from pathlib import Path

from faults import FAULTS

__all__ = ["FAULTS"]

for path in sorted(Path(__file__).parent.glob("faults_*.py")):
    import_module(path.stem)
