"""Figures of a report: as JSON has them, and for people."""

from __future__ import annotations

import math
from typing import Any

Report = dict[str, Any]


def number(value: float) -> float | None:
    """JSON has no infinity: None stands for an error that is not finite."""
    return value if math.isfinite(value) else None


def e(value: float | None) -> str:
    """For people."""
    return "not finite" if value is None else f"{value:.1e}"


def g(value: float | None) -> str:
    """For people: a value of a tensor, in as many digits as float32 has."""
    return "not finite" if value is None else f"{value:.9g}"
