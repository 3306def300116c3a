"""Runs plugins of the library on host memory: launches go to Triton's interpreter.

The driver shim is loaded as libcuda.so.1 before the library looks for one. Its launch call hands
over the compiled image; `kernels.json` says which Triton function that is, with which types and
constants, and the interpreter runs it on the addresses that `enqueue` gave.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
import triton
from torch import Tensor

from glm_trt.plugins import build
from glm_trt.plugins.common.contract import Contract
from glm_trt.plugins.common.expressions import evaluate

SOURCES = Path(__file__).parent / "shim"
# nvinfer1::DataType
TENSORRT_TYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2, torch.int32: 3,
                  torch.bfloat16: 7, torch.int64: 8}  # fmt: skip
TORCH_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
               "i8": torch.int8, "i32": torch.int32, "i64": torch.int64}  # fmt: skip
# nvinfer1::PluginFieldType
_FLOAT, _INTEGER, _TEXT = 1, 5, 6
# Shared memory that a block may have.
SHARED_KB = {"sm80": 163, "sm89": 99, "sm90": 227, "sm100": 227, "sm120": 99}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint), ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip


class _Tensor(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("rank", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8),
                ("data", ctypes.c_void_p))  # fmt: skip


class _Field(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("type", ctypes.c_int32), ("integer", ctypes.c_int32),
                ("real", ctypes.c_float), ("text", ctypes.c_char_p))  # fmt: skip


def without_gaps(
    contract: Contract, inputs: list[Tensor | None], attributes: dict[str, Any]
) -> list[Tensor]:
    """As TensorRT has them: an absent input is the last, or zeros that mean the same."""
    names: dict[str, Any] = {
        axis: size
        for port, tensor in zip(contract.inputs, inputs, strict=True)
        if tensor is not None
        for axis, size in zip(port.axes, tensor.shape, strict=True)
    }
    names |= contract.integers(attributes)
    for axis, expression in contract.derived.items():
        names.setdefault(axis, evaluate(expression, names))
    names.setdefault("G", names.get("H"))  # a decay a head
    count = max(i + 1 for i, tensor in enumerate(inputs) if tensor is not None)
    first = inputs[0]
    assert first is not None
    return [
        first.new_zeros([names[axis] for axis in port.axes]) if tensor is None else tensor
        for port, tensor in zip(contract.inputs[:count], inputs[:count], strict=True)
    ]


def compile_shared(source: str, output: Path, *flags: str) -> Path:
    """A shared object from one of the sources here."""
    subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *flags,
         f"-isystem{build.tensorrt_headers()}", f"-isystem{build.cuda_headers()}",
         str(SOURCES / source), "-o", str(output), "-ldl"],
        check=True,
    )  # fmt: skip
    return output


class Harness:
    """The library, with the driver shim under it or, without `shim`, the machine's own driver."""

    def __init__(self, library: Path, directory: Path, shim: bool = True) -> None:
        harness = compile_shared("harness.cpp", directory / "harness.so")
        self._shim: ctypes.CDLL | None = None
        if shim:
            name = "libcuda.so.1"
            path = compile_shared("driver_shim.cpp", directory / name, f"-Wl,-soname,{name}")
            self._shim = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        self._harness = ctypes.CDLL(str(harness))
        self._harness.harnessRun.restype = ctypes.c_int64
        self._callback = LAUNCH(self._launched)
        self._described = json.loads((library.parent / "kernels.json").read_text())
        self._functions: dict[str, Any] = {}
        for name in build.OPERATORS:
            self._functions |= vars(import_module(f"glm_trt.plugins.{name}.kernel"))
        self.launches: list[dict[str, Any]] = []
        self.error: Exception | None = None
        message = ctypes.create_string_buffer(2048)
        if self._harness.harnessOpen(str(library).encode(), message):
            raise RuntimeError(message.value.decode())

    def run(
        self,
        contract: Contract,
        inputs: list[Tensor],
        attributes: dict[str, Any],
        outputs: list[Tensor],
        capability: int,
        *,
        version: str | None = None,
    ) -> None:
        """Run the plugin on `inputs` into `outputs`; raises RuntimeError with what it logged."""
        if self._shim is not None:
            self._shim.shimSet(capability, self._callback)
        self.launches.clear()
        self.error = None
        fields = (_Field * max(len(attributes), 1))(
            *(_field(name, contract.attributes[name], value) for name, value in attributes.items())
        )
        tensors = (_Tensor * (len(inputs) + len(outputs)))(
            *(
                _Tensor(TENSORRT_TYPES[t.dtype], t.ndim, (ctypes.c_int64 * 8)(*t.shape),
                        t.data_ptr())
                for t in (*inputs, *outputs)
            )
        )  # fmt: skip
        message = ctypes.create_string_buffer(2048)

        def call(workspace: Any, size: int) -> int:
            result = self._harness.harnessRun(
                contract.name.encode(), fields, len(attributes), tensors, len(inputs),
                len(outputs), ctypes.c_void_p(workspace), ctypes.c_int64(size),
                None if version is None else version.encode(), message,
            )  # fmt: skip
            if self.error is not None:
                raise self.error
            if result < 0:
                raise RuntimeError(message.value.decode())
            return int(result)

        self.workspace_bytes = call(None, 0)
        # NaN in any dtype, with a margin that must stay as it is.
        workspace = torch.full(
            (self.workspace_bytes + 4096,), 0xFF, dtype=torch.uint8, device=inputs[0].device
        )
        address = workspace.data_ptr()
        start = -(-address // 256) * 256 - address
        call(address + start, self.workspace_bytes)
        assert bool((workspace[start + self.workspace_bytes :] == 0xFF).all())
        assert bool((workspace[:start] == 0xFF).all())

    def _launched(self, image: int, size: int, entry: bytes, grid: Any, threads: int,
                  shared: int, parameters: Any) -> int:  # fmt: skip
        try:
            digest = hashlib.sha256(ctypes.string_at(image, size)).hexdigest()
            kernel = self._described[digest]
            assert kernel["function"] == entry.decode()
            options = dict(kernel["options"])
            assert threads == 32 * options["num_warps"]
            arguments = [
                _argument(kind, parameters[i]) for i, (_, kind) in enumerate(kernel["signature"])
            ]
            self.launches.append({"kernel": entry.decode(), "grid": tuple(grid[:3])})
            function = self._functions[kernel["function"]]
            function[tuple(grid[:3])](*arguments, **dict(kernel["constants"]), **options)
        except Exception as error:
            self.error = error
            return 1
        return 0


def _field(name: str, kind: Any, value: Any) -> _Field:
    if isinstance(value, str):
        return _Field(name.encode(), _TEXT, 0, 0.0, value.encode())
    return _Field(name.encode(), _FLOAT if kind is float else _INTEGER, int(value), value, None)


def _argument(kind: str, address: int) -> Any:
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


@dataclass(frozen=True)
class CompiledKernel:
    """An image of the library: its entry in kernels.json, and what it takes of a GPU."""

    entry: dict[str, Any]
    registers: int  # of a thread
    stack: int  # bytes of a thread's local memory: what did not fit the registers

    @property
    def is_aligned(self) -> bool:
        """Whether it is for sizes that are multiples of 16."""
        return any(kind.endswith(":16") for _, kind in self.entry["signature"])

    @property
    def fits(self) -> bool:
        """Whether one block of it fits a multiprocessor of its target."""
        threads = 32 * dict(self.entry["options"])["num_warps"]
        shared = SHARED_KB[self.entry["target"]] * 1024
        return self.registers * threads <= 65536 and self.entry["shared_bytes"] <= shared


def compiled_kernels(library: Path, functions: set[str]) -> list[CompiledKernel]:
    """The library's images of these Triton functions, as the CUDA tools describe them."""
    described = json.loads((library.parent / "kernels.json").read_text())
    found = []
    for path in sorted((library.parent / "generated").glob("*.cubin")):
        entry = described.get(hashlib.sha256(path.read_bytes()).hexdigest())
        if entry is None or entry["function"] not in functions:
            continue
        text = subprocess.run([str(CUOBJDUMP), "--dump-resource-usage", str(path)],
                              capture_output=True, text=True, check=True).stdout  # fmt: skip
        (usage,) = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(?:\d+) LOCAL:(\d+)", text)
        registers, stack, local = map(int, usage)
        found.append(CompiledKernel(entry, registers, stack + local))
    return found
