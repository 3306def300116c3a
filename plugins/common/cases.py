"""Test cases of an operator: shared by the interpreter's tests, the library's, and a GPU's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class OperatorCase:
    """Inputs by a generator and the activation dtype (None: absent), and the attributes."""

    name: str
    attributes: dict[str, Any]
    make: Callable[[torch.Generator, torch.dtype], list[Tensor | None]]


Sizes = dict[str, int]  # by axis


@dataclass(frozen=True)
class Sampled:
    """Sizes that are drawn at random, to see that the workspace holds for any.

    Attributes
    ----------
    free : axes that vary by themselves, each to a largest size; `steps` of which it is a multiple.
    attributes : drawn ones.
    follow : the axes that follow from these and that no contract derives.
    """

    free: Sizes
    steps: Sizes = field(default_factory=dict)
    attributes: Callable[[random.Random], dict[str, Any]] = lambda _: {}
    follow: Callable[[Sizes, dict[str, Any]], Sizes] = lambda sizes, attributes: {}


def fp8_codes(generator: torch.Generator, *shape: int) -> Tensor:
    """Every e4m3 code but NaN, as int8."""
    codes = torch.randint(254, shape, generator=generator)
    return (codes + (codes >= 127).int()).to(torch.uint8).view(torch.int8)


def fp8_weight(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    """Codes [..., out, in] and scales [..., ⌈out/128⌉, ⌈in/128⌉]; about 1/√in each."""
    *stack, rows, columns = shape
    blocks = (*stack, -(-rows // 128), -(-columns // 128))
    scale = (torch.rand(blocks, generator=generator) + 0.5) / (150 * columns**0.5)
    return fp8_codes(generator, *shape), scale


def nvfp4_weight(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [..., out, in/2], scales [..., out, in/16] and global scales [...]."""
    *stack, rows, columns = shape
    codes = torch.randint(-128, 128, (*stack, rows, columns // 2), generator=generator)
    scale = torch.rand((*stack, rows, columns // 16), generator=generator) * 256 + 64
    global_scale = (torch.rand(stack, generator=generator) + 0.5) / (600 * columns**0.5)
    return codes.to(torch.int8), scale.to(torch.float8_e4m3fn).view(torch.int8), global_scale


def routed(
    generator: torch.Generator, tokens: int, k: int, experts: int, hidden: int, spread: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, hidden], and for each token k of the last `spread` experts with their weights."""
    order = torch.randn(tokens, spread, generator=generator).argsort(-1)[:, :k] + experts - spread
    weights = torch.rand(tokens, k, generator=generator)
    return torch.randn(tokens, hidden, generator=generator), order.int(), weights
