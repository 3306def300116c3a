"""Test cases of an operator: shared by the interpreter's tests, the library's, and a GPU's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Inputs by a generator and the activation dtype (None: absent), and the attributes."""

    name: str
    attributes: dict[str, Any]
    make: Callable[[torch.Generator, torch.dtype], list[Tensor | None]]
