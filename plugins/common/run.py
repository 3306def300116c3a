"""Following an operator's launches on tensors: what `torch.ops.glm_trt` does on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from glm_trt.plugins.common.contract import Contract, Types
from glm_trt.plugins.common.expressions import evaluate
from glm_trt.plugins.common.launch import POINTER_ALIGNMENT, Launches


def run(
    launches: Launches,
    kernels: Mapping[str, Any],
    tensors: Sequence[Tensor | None],
    attributes: dict[str, Any],
    target: str,
    *,
    allocate: Callable[..., Tensor] = torch.empty,
) -> tuple[Tensor, ...]:
    """Run an operator's kernels on tensors: on a CUDA device, or anywhere under the interpreter.

    Parameters
    ----------
    kernels : the `triton.jit` functions by name.
    tensors : the contract's inputs in order, contiguous; None where an optional one is absent.
    target : whose configurations to use.
    allocate : makes outputs and workspace; tests fill them with NaN and guard them.

    Raises
    ------
    ValueError
        Where a limit does not hold, or an input is not contiguous and aligned, or has another
        shape or dtype than the contract says.
    """
    contract = launches.contract
    types = contract.types_of(tensors)
    names = names_of(contract, tensors, attributes)
    for expression, message in launches.limits:
        if not evaluate(expression, names):
            raise ValueError(f"{contract.name}: {message}; not so with {names}")
    pointers = _checked_inputs(contract, tensors, types)
    device = next(tensor.device for tensor in tensors if tensor is not None)

    def made(shape: list[int], dtype: str) -> Tensor:
        return allocate(shape, dtype=_torch(types.of(dtype)), device=device)

    outputs = [made([names[axis] for axis in p.axes], p.dtype) for p in contract.outputs]
    pointers |= {port.name: o for port, o in zip(contract.outputs, outputs, strict=True)}
    pointers |= {
        buffer.name: made([evaluate(buffer.elements, names)], buffer.dtype)
        for buffer in launches.workspace
    }
    for launch, config in launches.active(names, target, types.activation):
        constants = launch.picked(names)
        inner = names | config | constants
        grid = tuple(evaluate(size, inner) for size in launch.grid)
        if 0 in grid:
            continue
        arguments = [
            pointers[a] if a in pointers
            else attributes[a] if isinstance(attributes.get(a), float)
            else evaluate(a, inner)
            for a in launch.arguments
        ]  # fmt: skip
        kernels[launch.kernel][grid](*arguments, **constants, **config)
    return tuple(outputs)


def _torch(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype)
    return found


def names_of(
    contract: Contract, tensors: Sequence[Tensor | None], attributes: dict[str, Any]
) -> dict[str, int]:
    """What expressions of a call may name; ValueError where shapes are not as the contract says."""
    names = contract.integers(attributes)
    for port, tensor in zip(contract.inputs, tensors, strict=True):
        if port.optional:
            names[f"has_{port.name}"] = int(tensor is not None)
        elif tensor is None:
            raise ValueError(f"{contract.name}: {port.name}: missing")
        if tensor is None:
            continue
        if tensor.ndim != len(port.axes):
            raise ValueError(
                f"{contract.name}: {port.name}: expected {len(port.axes)} axes, found {tensor.ndim}"
            )
        for axis, size in zip(port.axes, tensor.shape, strict=True):
            if names.setdefault(axis, size) != size:
                raise ValueError(
                    f"{contract.name}: {port.name}: axis {axis}: expected {names[axis]}, "
                    f"found {size}"
                )
    for axis, expression in contract.derived.items():
        size = evaluate(expression, names)
        if names.setdefault(axis, size) != size:
            raise ValueError(
                f"{contract.name}: axis {axis}: expected {size} = {expression}, found {names[axis]}"
            )
    names["ITEMSIZE"] = _torch(contract.types_of(tensors).activation).itemsize
    return dict.fromkeys((axis for port in contract.inputs for axis in port.axes), 0) | names


def _checked_inputs(
    contract: Contract, tensors: Sequence[Tensor | None], types: Types
) -> dict[str, Tensor]:
    """What each input's pointer is taken of: an empty tensor, at address 0, where it is absent."""
    if types not in contract.types():
        raise ValueError(f"{contract.name}: no kernels for {types.activation} and {types.state}")
    pointers = {}
    for port, tensor in zip(contract.inputs, tensors, strict=True):
        dtype = types.of(port.dtype)
        if tensor is None:
            pointers[port.name] = torch.empty(0, dtype=_torch(dtype))
            continue
        if tensor.dtype != _torch(dtype):
            found = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{contract.name}: {port.name}: expected {dtype}, found {found}")
        if not tensor.is_contiguous() or tensor.data_ptr() % POINTER_ALIGNMENT:
            raise ValueError(
                f"{contract.name}: {port.name}: expected a contiguous tensor at a multiple of "
                f"{POINTER_ALIGNMENT} bytes"
            )
        pointers[port.name] = tensor
    return pointers
