"""A bundle's weights, number for number, beside the checkpoint's own.

What runs shows only the weights that some token reaches, and only as far as rounding lets it. Here
every weight of every block is compared bit by bit: as the bundle's bindings make it of its files,
and as `published` reads it from the checkpoint by its published names, which share no code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.bindings import Binding
from glm_trt.model.errors import CheckpointError
from glm_trt.model.weights import ExpertStack, load_weights
from glm_trt.validate.reference import Reference

# Numbers of a whole model up to which all of them are compared. Above, of the weights that are too
# large to be held (experts' stacks, embeddings, heads) some parts are.
WHOLE = 1 << 32
# Experts, or runs of rows, of such a weight that are compared; the first and last always.
SAMPLED = 8
ROWS = 1024
# Wide enough for every dtype that a checkpoint stores, but float64.
_DTYPE = "float32"
Place = Callable[[tuple[int, ...]], list[int]]


@dataclass
class WeightsCompared:
    """What was compared, and what differs.

    Attributes
    ----------
    whole : whether every number was; else of the largest weights a sample.
    numbers : how many were compared.
    differences : block, weight, and what differs.
    """

    whole: bool
    numbers: int = 0
    differences: list[dict[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {"whole": self.whole, "numbers": self.numbers, "differences": self.differences}


def start_comparing(bundle: Bundle, reference: Reference) -> WeightsCompared | None:
    """Nothing compared yet; None where there is nothing to compare with but the bundle itself."""
    if reference.published is None:
        return None
    blocks = (*bundle.blocks, *bundle.prediction_blocks)
    numbers = sum(math.prod(x.shape) for block in blocks for x in block.bindings)
    return WeightsCompared(numbers <= WHOLE)


def compare_weights(
    bundle: Bundle, reference: Reference, block: Block, compared: WeightsCompared
) -> None:
    """Compare the weights of one block; what differs is added to `compared`.

    Memory holds the block's weights in float32, but of stacks of experts one expert, and of
    embeddings and heads some rows.
    """
    expected = reference.weights(block, _DTYPE)
    for binding in block.bindings:
        text = _difference(bundle, binding, expected.pop(binding.name, None), compared)
        if text is not None:
            compared.differences.append(
                {"block": block.name, "weight": binding.name, "text": text}
            )  # fmt: skip
    for name in expected:  # has no binding
        text = "expected a weight, found no binding"
        compared.differences.append({"block": block.name, "weight": name, "text": text})


def _difference(
    bundle: Bundle, binding: Binding, expected: Any, compared: WeightsCompared
) -> str | None:
    """What differs in one weight: the first number that does, both values, and how many."""
    source = ", ".join(binding.tensors[:2]) + (", …" if len(binding.tensors) > 2 else "")
    if expected is None:
        return f"of {source}: the checkpoint's block has no such weight"
    try:
        found = load_weights([binding], bundle.weights, _DTYPE)[binding.name]
        if type(found) is not type(expected):
            return f"of {source}: expected {_kind(expected)}, found {_kind(found)}"
        first, count = "", 0
        for place, one, other in _parts(binding, expected, found, compared.whole):
            compared.numbers += one.numel()
            if one.shape != other.shape or one.dtype != other.dtype:
                return f"of {source}: expected {_kind(one)}, found {_kind(other)}"
            unlike = (_bits(one) != _bits(other)).nonzero()
            if len(unlike) and not count:
                at = tuple(unlike[0].tolist())
                first = (
                    f"at {place(at)}: expected {one[at].item():.9g}, found {other[at].item():.9g}"
                )
            count += len(unlike)
    except CheckpointError as error:
        return str(error)
    if not count:
        return None
    others = f", and {count - 1} more" if count > 1 else ""
    return f"of {source}: not the checkpoint's {first}{others}"


def _parts(
    binding: Binding, expected: Any, found: Any, whole: bool
) -> Iterator[tuple[Place, Tensor, Tensor]]:
    """Parts of both, and what gives the place of an element of a part in the whole weight; a weight
    that is held is one part.
    """
    if isinstance(expected, Tensor):
        yield list, expected.detach(), found.detach()
        return
    count, size = binding.shape[0], 1 if isinstance(expected, ExpertStack) else ROWS
    for begin in _sampled(count, size, whole):
        if isinstance(expected, ExpertStack):
            yield partial(_in_expert, begin), expected[begin], found[begin]
        else:
            rows = torch.arange(begin, min(begin + size, count))
            yield partial(_behind_row, begin), expected.rows(rows), found.rows(rows)


def _in_expert(expert: int, at: tuple[int, ...]) -> list[int]:
    return [expert, *at]


def _behind_row(begin: int, at: tuple[int, ...]) -> list[int]:
    return [begin + at[0], *at[1:]]


def _sampled(count: int, size: int, whole: bool) -> list[int]:
    """Where the parts of `size` begin that are compared; every run the same ones."""
    begins = range(0, count, size)
    if whole or len(begins) <= SAMPLED:
        return list(begins)
    inner = np.random.default_rng(0).choice(len(begins) - 2, SAMPLED - 2, replace=False) + 1
    return [begins[i] for i in sorted({0, len(begins) - 1, *inner.tolist()})]


def _bits(tensor: Tensor) -> Tensor:
    """As integers, so that a NaN equals itself and −0 is not 0."""
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor


def _kind(weight: Any) -> str:
    if not isinstance(weight, Tensor):
        return "a weight that stays in its file"
    return f"{str(weight.dtype).removeprefix('torch.')} {list(weight.shape)}"
