"""Kernels of the plugin library, by Triton's interpreter on the addresses of a launch."""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from triton.runtime.interpreter import GridExecutor

from glm_trt.plugins.folders import CONTRACTS

TORCH_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
               "i8": torch.int8, "i32": torch.int32, "i64": torch.int64}  # fmt: skip


@functools.cache
def triton_functions() -> dict[str, Any]:
    """Every Triton function of every operator, by name."""
    found: dict[str, Any] = {}
    for name in CONTRACTS:
        found |= vars(import_module(f"glm_trt.plugins.{name}.kernel"))
    return found


@functools.cache
def described(path: Path) -> dict[str, dict[str, Any]]:
    """What a `kernels.json` says, by the SHA-256 of the image."""
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return found


def argument(kind: str, address: int) -> Any:
    """The value of type `kind` that lies at `address`; a pointer is a tensor of one element."""
    if kind.startswith("i32"):
        return ctypes.c_int32.from_address(address).value
    if kind == "fp32":
        return ctypes.c_float.from_address(address).value
    target = ctypes.c_void_p.from_address(address).value
    dtype = TORCH_TYPES[kind.removeprefix("*")]
    if target is None:
        return torch.empty(0, dtype=dtype)
    # The interpreter uses the address of a tensor alone.
    return torch.frombuffer((ctypes.c_char * 8).from_address(target), dtype=dtype, count=1)


def launch(
    kernel: dict[str, Any], entry: str, grid: Sequence[int], threads: int, shared: int,
    parameters: Sequence[int],
) -> list[Any]:  # fmt: skip
    """Do what a launch does; `parameters` are the addresses of its arguments, which are returned.

    Raises
    ------
    ValueError
        If it is not launched as it was compiled.
    """
    expected = (kernel["function"], 32 * dict(kernel["options"])["num_warps"])
    expected += (kernel["shared_bytes"],)
    if (entry, threads, shared) != expected:
        raise ValueError(
            f"{entry}: compiled as (function, threads, shared bytes) {expected}, launched as "
            f"{(entry, threads, shared)}"
        )
    kinds = [kind for _, kind in kernel["signature"]]
    arguments = [argument(kind, parameters[i]) for i, kind in enumerate(kinds)]
    options = dict(kernel["options"]) | dict(kernel["constants"])
    # Nothing was copied, so nothing is copied back: of what is not used the address alone is good,
    # such as the end of the workspace for a buffer of no bytes.
    with patch.object(GridExecutor, "_restore_args_dev", lambda *_: None):
        triton_functions()[kernel["function"]][tuple(grid)](*arguments, **options)
    return arguments
