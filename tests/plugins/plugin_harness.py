"""Runs plugins of the library on the stand-in driver: launches go to Triton's interpreter.

The stand-in (tests/stand_ins) is loaded as libcuda.so.1 before the library looks for one. When its
stream comes to a launch it says which compiled image that is; `kernels.json` says which Triton
function, with which types and constants, and the interpreter runs it on the addresses that
`enqueue` gave. Tensors lie in the stand-in's memory, each between guards.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
import triton
from torch import Tensor

# Benchmarks that use this module know this folder alone.
sys.path.append(str(Path(__file__).parent.parent / "stand_ins"))

from interpreted import described, launch
from stand_in_device import StandIn
from stand_in_tensors import OnDevice

from glm_trt.plugins.common.contract import Contract
from glm_trt.plugins.common.expressions import evaluate
from glm_trt.plugins.common.launch import Launch, Launches
from glm_trt.plugins.headers import cuda_headers, tensorrt_headers

SOURCES = Path(__file__).parent / "host"
# nvinfer1::DataType
TENSORRT_TYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2, torch.int32: 3,
                  torch.bfloat16: 7, torch.int64: 8}  # fmt: skip
# nvinfer1::PluginFieldType
_FLOAT, _INTEGER, _TEXT = 1, 5, 6
WORKSPACE = "workspace"
# Shared memory that a block may have; sm86, which runs the kernels of sm80, has less than that.
SHARED_KB = {"sm80": 99, "sm89": 99, "sm90": 227, "sm100": 227, "sm120": 99}
# Bytes a thread that kernels keep beside the registers, at sizes that are multiples of 16, where
# that was faster on such a GPU than what keeps none (docs/measurements.md).
SPILLS_THAT_PAY = {
    ("attend_selected", "sm90"): 200,
    ("nvfp4_linear_tiles", "sm90"): 1104,
    ("prepare_chunks", "sm90"): 144,
    ("scan_chunks", "sm90"): 56,
}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def mostly_slow(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of a test, of which all but `quick` are for the slow run."""
    return [
        pytest.param(of, id=str(of), marks=() if of in quick else pytest.mark.slow) for of in values
    ]


def by_turns(values: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """All pairs; those where not both are next in turn are slow, so that each occurs without."""
    count = max(len(values), len(others))
    quick = {(i % len(values), i % len(others)) for i in range(count)}
    found = []
    for i, j in itertools.product(range(len(values)), range(len(others))):
        other = others[j] if isinstance(others[j], tuple) else (others[j],)
        label = "-".join(map(str, (values[i], *other)))
        marks = () if (i, j) in quick else pytest.mark.slow
        found.append(pytest.param(values[i], *other, id=label, marks=marks))
    return found


def coarse(launches: Launches) -> Launches:
    """The same with fewer programs, each of more outputs: for sizes that take minutes otherwise."""
    outputs = {"gate_up_pairs": "BLOCK_I", "down_tokens": "BLOCK_H"}

    def wider(launch: Launch) -> Launch:
        name = outputs.get(launch.kernel, "BLOCK_N")
        configs = {
            key: config | ({name: 128} if name in config else {})
            for key, config in launch.configs.items()
        }
        return replace(launch, configs=configs)

    return replace(launches, steps=tuple(map(wider, launches.steps)))


class _Tensor(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("rank", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8),
                ("largest", ctypes.c_int64 * 8), ("data", ctypes.c_void_p))  # fmt: skip


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
         f"-isystem{tensorrt_headers()}", f"-isystem{cuda_headers()}",
         str(SOURCES / source), "-o", str(output), "-ldl"],
        check=True,
    )  # fmt: skip
    return output


def up_to(
    contract: Contract, tensors: Sequence[Tensor], larger: Mapping[str, int] | None = None
) -> list[tuple[torch.dtype, list[int], list[int]]]:
    """What `Harness.build` takes: a profile from these inputs and outputs to `larger`, by axis."""
    count = len(tensors) - len(contract.outputs)
    found = []
    for port, tensor in zip((*contract.inputs[:count], *contract.outputs), tensors, strict=True):
        sizes = dict(zip(port.axes, tensor.shape, strict=True))
        largest = [(larger or {}).get(axis, size) for axis, size in sizes.items()]
        found.append((tensor.dtype, list(sizes.values()), largest))
    return found


class Harness:
    """The library on the stand-in driver or, without `shim`, on the machine's own."""

    def __init__(self, library: Path, directory: Path, shim: bool = True) -> None:
        harness = compile_shared("harness.cpp", directory / "harness.so")
        self._described = described(library.parent / "kernels.json")
        self._device = StandIn(self._launched) if shim else None
        if self._device is not None:
            self._device.configure(memory=4 << 30, kernels=library.parent / "kernels.json")
        self._harness = ctypes.CDLL(str(harness))
        self._harness.harnessBuild.restype = ctypes.c_int64
        self._harness.harnessRun.restype = ctypes.c_int64
        self._narrow = {
            _form(entry) for entry in self._described.values() if not _is_wide(entry["signature"])
        }
        self.launches: list[Launched] = []
        self._places: list[tuple[int, int, str]] = []
        self.error: Exception | None = None
        self._message = ctypes.create_string_buffer(2048)
        if self._harness.harnessOpen(str(library).encode(), self._message):
            raise RuntimeError(self._message.value.decode())

    @property
    def targets(self) -> list[str]:
        """The targets that the library has kernels for."""
        found = {entry["target"] for entry in self._described.values()}
        return sorted(found, key=lambda target: int(target.removeprefix("sm")))

    def renew_context(self) -> None:
        """Another context in place of this one, of which nothing is left."""
        assert self._device is not None
        self._device.renew_context()

    def build(
        self,
        contract: Contract,
        tensors: Sequence[tuple[torch.dtype, Sequence[int], Sequence[int]]],
        attributes: dict[str, Any],
    ) -> Built:
        """The plugin for a profile; raises RuntimeError with what it logged.

        `tensors` are the inputs and outputs: dtype, sizes, the largest sizes.
        """
        fields = (_Field * max(len(attributes), 1))(
            *(_field(name, contract.attributes[name], value) for name, value in attributes.items())
        )
        described = (_Tensor * len(tensors))(
            *(
                _Tensor(TENSORRT_TYPES[dtype], len(sizes), _sizes(sizes), _sizes(largest), None)
                for dtype, sizes, largest in tensors
            )
        )
        kept = ctypes.c_void_p()
        outputs = len(contract.outputs)
        answered = self._harness.harnessBuild(
            contract.name.encode(), fields, len(attributes), described, len(tensors) - outputs,
            outputs, ctypes.byref(kept), self._message,
        )  # fmt: skip
        if answered < 0:
            raise RuntimeError(self._message.value.decode())
        return Built(self._harness, kept, int(answered))

    def enqueue(
        self,
        built: Built,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        capability: int,
        workspace: int | None,
        stream: int = 0,
    ) -> None:
        """Queue it on `stream`, in the workspace at this address.

        On the stand-in, tensors are the host's: they are copied there, the plugin is queued between
        the copies, and the outputs are copied back. The workspace lies there too, of exactly the
        size that the plugin asked for, and as far from a multiple of 16 as this address.

        Raises RuntimeError with what it logged, AssertionError with the driver's violations.
        """
        self.launches.clear()
        self.error = None
        if self._device is None:
            tensors = [(t, t.data_ptr()) for t in (*inputs, *outputs)]
            self._queue(built, tensors, len(outputs), workspace, stream)
            return
        self._device.configure(target=f"sm{capability}")
        with OnDevice(self._device, inputs, outputs) as there:
            if workspace is not None:
                workspace = there.take(built.workspace_bytes, workspace % 16)
            self._places = [
                (there.address(t), t.nbytes, f"{kind} {i}")
                for kind, of in (("input", inputs), ("output", outputs))
                for i, t in enumerate(of)
            ]
            if workspace is not None:
                self._places.append((workspace, built.workspace_bytes, WORKSPACE))
            tensors = [(t, there.address(t)) for t in (*inputs, *outputs)]
            stream = self._device.stream.value or 0
            self._queue(built, tensors, len(outputs), workspace, stream)
            there.bring_back()
            if self.error is not None:
                raise self.error

    def _queue(
        self,
        built: Built,
        placed: Sequence[tuple[Tensor, int]],
        outputs: int,
        workspace: int | None,
        stream: int,
    ) -> None:
        tensors = (_Tensor * len(placed))(
            *(
                _Tensor(TENSORRT_TYPES[t.dtype], t.ndim, _sizes(t.shape), _sizes(t.shape), address)
                for t, address in placed
            )
        )
        result = self._harness.harnessRun(
            built.kept, tensors, len(placed) - outputs, outputs, ctypes.c_void_p(workspace),
            ctypes.c_void_p(stream), self._message,
        )  # fmt: skip
        if result < 0:
            raise RuntimeError(self._message.value.decode())

    def run(
        self,
        contract: Contract,
        inputs: list[Tensor],
        attributes: dict[str, Any],
        outputs: list[Tensor],
        capability: int,
        *,
        larger: Mapping[str, int] | None = None,
    ) -> None:
        """Build for a profile from these sizes to `larger`, by axis, and run in what it asked for.

        The workspace is NaN in any dtype; nothing lies beside it.
        """
        built = self.build(contract, up_to(contract, (*inputs, *outputs), larger), attributes)
        self.enqueue(built, inputs, outputs, capability, 0)

    def _launched(self, image: bytes, entry: bytes, grid: Any, threads: int, shared: int,
                  parameters: Any) -> int:  # fmt: skip
        try:
            kernel = self._described[image.decode()]
            sizes = tuple(grid[:3])
            arguments = launch(kernel, entry.decode(), sizes, threads, shared, parameters)
            wide = _is_wide(kernel["signature"])
            wide = wide if not wide or _form(kernel) in self._narrow else None
            self.launches.append(
                Launched(
                    entry.decode(), sizes,
                    tuple(self._place(a) if isinstance(a, Tensor) else a for a in arguments),
                    dict(kernel["constants"]) | dict(kernel["options"]), wide,
                )
            )  # fmt: skip
        except Exception as error:
            self.error = error
            return 1
        return 0

    def _place(self, pointer: Tensor) -> tuple[str, int, torch.dtype]:
        """Where an argument points: at the beginning of a tensor, or into the workspace."""
        address = pointer.data_ptr()
        if not pointer.numel():
            return "null", 0, pointer.dtype
        for start, size, name in self._places:
            if address == start or (name == WORKSPACE and start <= address <= start + size):
                return name, address - start, pointer.dtype
        raise AssertionError(f"{address:#x} is in no tensor and not in the workspace")


@dataclass(frozen=True)
class Launched:
    """A launch that reached the driver.

    `arguments` are numbers and places (tensor, offset, dtype); `wide` says that the kernel takes
    row sizes as multiples of 16 (None: it is the same image as one that does not).
    """

    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, int]
    wide: bool | None = field(compare=False)


class Built:
    """A plugin as an engine keeps it, and the bytes of workspace that it asked for."""

    def __init__(self, harness: ctypes.CDLL, kept: ctypes.c_void_p, workspace_bytes: int) -> None:
        self._harness = harness
        self.kept = kept
        self.workspace_bytes = workspace_bytes

    def change(self, field: str, text: bytes | None) -> None:
        """Give a field of what is kept another text, or take it out."""
        self._harness.harnessChange(self.kept, field.encode(), text)

    def __del__(self) -> None:
        self._harness.harnessDelete(self.kept)


def _is_wide(signature: Sequence[tuple[str, str]]) -> bool:
    return any(kind.endswith(":16") for _, kind in signature)


def _form(entry: dict[str, Any]) -> str:
    """What two kernels have in common of which one takes multiples of 16 alone."""
    signature = [(name, kind.removesuffix(":16")) for name, kind in entry["signature"]]
    return repr((entry["function"], entry["target"], signature, entry["constants"],
                 entry["options"]))  # fmt: skip


def _sizes(sizes: Sequence[int]) -> Any:
    return (ctypes.c_int64 * 8)(*sizes)


def _field(name: str, kind: Any, value: Any) -> _Field:
    if isinstance(value, str):
        return _Field(name.encode(), _TEXT, 0, 0.0, value.encode())
    return _Field(name.encode(), _FLOAT if kind is float else _INTEGER, int(value), value, None)


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
    def spills(self) -> bool:
        """Whether more is beside its registers than was found to pay."""
        entry = self.entry
        return self.stack > SPILLS_THAT_PAY.get((entry["function"], entry["target"]), 0)

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
