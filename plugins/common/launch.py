"""Launches: what an operator launches, as data.

One description of the kernels of an operator, with their grids, arguments and workspace. The torch
side follows it directly (`run`); the plugin library is generated from it, so `enqueue` in C++
launches the same kernels with the same arguments.

Names an expression may use: the axes of the contract's ports, the integer attributes and the
indices of choices, `has_PORT` (0 or 1) of each optional input, the constants of the launch, and
`ITEMSIZE`, the bytes of one activation. An axis that only an absent input has is 0. Workspace and
limits use no constants: a plugin states them before it knows its GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from glm_trt.plugins.common.contract import Contract
from glm_trt.plugins.common.expressions import evaluate

ALIGNMENT = 256  # bytes; of each buffer in the workspace
POINTER_ALIGNMENT = 16  # bytes; what kernels may assume of every pointer
SIZE_ALIGNMENT = 16  # elements; what aligned kernels may assume of their row sizes


@dataclass(frozen=True)
class Buffer:
    """A piece of the workspace.

    Attributes
    ----------
    dtype : a name, or `ACTIVATION`.
    elements : an expression that never shrinks where an axis grows. TensorRT asks for the workspace
        once, at a profile's largest sizes, and runs every smaller problem in it; a buffer of which
        fewer tokens need more has the most that any of them needs.
    over : the buffer before it where this one begins too, as no call uses both; "": none.
    """

    name: str
    dtype: str
    elements: str
    over: str = ""


@dataclass(frozen=True)
class Pick:
    """A constant of a kernel: the smallest of `values` that is at least `expression`.

    `exact`: a larger one would mean something else, and not only be slower.
    """

    expression: str
    values: tuple[int, ...]
    exact: bool = False

    def pick(self, names: Mapping[str, Any]) -> int:
        """The value for these sizes; ValueError where none is large enough."""
        needed = evaluate(self.expression, names)
        for value in self.values:
            if value >= needed:
                return value
        raise ValueError(f"{self.expression} = {needed}: expected at most {self.values[-1]}")


def on_hopper(config: dict[str, int]) -> dict[str, dict[str, int]]:
    """The configuration of sm90 in 16 bits, as `benchmarks/gpu_tune.py` found it on an H100."""
    return {f"sm90/{dtype}": config for dtype in ("float16", "bfloat16")}


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes
    ----------
    kernel : name of a `triton.jit` function in the operator's `kernel.py`.
    grid : three expressions; nothing is launched where one of them is 0.
    arguments : the kernel's run-time parameters in order: the name of a port or a buffer (its
        pointer), of a float attribute (fp32), or an integer expression (int32).
    constants : the kernel's `tl.constexpr` parameters that depend on sizes or attributes.
    configs : the others, with `num_warps` and `num_stages`: by "TARGET/DTYPE", TARGET, "*/DTYPE"
        or "*", the first of these that is there.
    when : expression without `constants`; nothing is launched where it is 0.
    aligned : integer arguments for which there is a second kernel, used where all of them are
        multiples of 16: row sizes, without which no load can be wide. Models have no others, so
        where one is not, there is only the kernel whose constants are the largest.
    """

    kernel: str
    grid: tuple[str, str, str]
    arguments: tuple[str, ...]
    configs: dict[str, dict[str, int]]
    constants: dict[str, Pick] = field(default_factory=dict)
    when: str = "1"
    aligned: tuple[str, ...] = ()

    def is_aligned(self, names: Mapping[str, Any]) -> bool:
        """Whether all `aligned` arguments are multiples of 16; so if there are none."""
        return all(evaluate(size, names) % SIZE_ALIGNMENT == 0 for size in self.aligned)

    def picked(self, names: Mapping[str, Any]) -> dict[str, int]:
        """The constants for these sizes; ValueError where no value is large enough."""
        found = {name: pick.pick(names) for name, pick in self.constants.items()}
        return found if self.is_aligned(names) else found | self.largest()

    def largest(self) -> dict[str, int]:
        """Of each constant that may be larger than it need be the largest value."""
        return {name: p.values[-1] for name, p in self.constants.items() if not p.exact}

    def config(self, target: str, dtype: str) -> dict[str, int]:
        """The configuration for a target and an activation dtype."""
        keys = (f"{target}/{dtype}", target, f"*/{dtype}", "*")
        return next(self.configs[key] for key in keys if key in self.configs)


@dataclass(frozen=True)
class Launches:
    """All launches of one operator: `steps`, in order.

    `limits` are expressions that must hold, each with what to say where one does not.
    """

    contract: Contract
    steps: tuple[Launch, ...]
    workspace: tuple[Buffer, ...] = ()
    limits: tuple[tuple[str, str], ...] = ()

    def active(
        self, names: Mapping[str, Any], target: str, dtype: str
    ) -> Iterator[tuple[Launch, dict[str, int]]]:
        """The launches of a call of these sizes, in order, with their configurations."""
        for launch in self.steps:
            config = launch.config(target, dtype)
            if evaluate(launch.when, {**names, **config}):
                yield launch, config

    def offsets(self, names: Mapping[str, Any]) -> tuple[dict[str, int], int]:
        """Byte offset of each buffer, and the workspace's size."""
        offsets: dict[str, int] = {}
        end = 0
        for buffer in self.workspace:
            offsets[buffer.name] = offsets[buffer.over] if buffer.over else end
            size = {"int32": 4, "float32": 4, "int64": 8}.get(buffer.dtype, names["ITEMSIZE"])
            padded = -(-evaluate(buffer.elements, names) * size // ALIGNMENT) * ALIGNMENT
            end = max(end, offsets[buffer.name] + padded)
        return offsets, end
