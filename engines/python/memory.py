"""Where the arrays of onnxruntime's passes live: on the host, or in the memory of a device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from glm_trt.engines.python.onnxruntime_module import ort
from glm_trt.engines.python.providers import Provider
from glm_trt.engines.python.values import ELEMENT_TYPES, ort_value
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES
from glm_trt.model.errors import MissingCapabilityError

Array = NDArray[Any]
ZEROS = 1 << 24  # bytes of zeros that are sent at a time


class Memory(Protocol):
    """Arrays that sessions read and write, which nothing but these methods touches.

    What an array is depends on the memory: NumPy's own, or `Placed`.
    """

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array of zeros."""
        ...

    def mirror(self, array: Array) -> Any:
        """What sessions read for an array of the host, as it was when `send` was last called."""
        ...

    def send(self, mirror: Any, array: Array) -> None:
        """Bring a mirror up to date."""
        ...

    def view(self, array: Any, rows: slice, length: int | None = None) -> Any:
        """Some rows of an array; of caches [B, 1, C, D] the first `length` positions, which of
        several rows must be all that there are.
        """
        ...

    def copy(self, target: Any, source: Any) -> None:
        """Copy an array into one of the same shape."""
        ...

    def pick(self, target: Any, source: Any, places: Array) -> None:
        """Copy entry places[i] of row i of `source` [n, S, D] into row i of `target` [n, 1, D]."""
        ...

    def put(self, target: Any, array: Array) -> None:
        """Copy an array of the host there, with the target's dtype."""
        ...

    def get(self, source: Any) -> Array:
        """A copy for the host."""
        ...

    def clear(self, target: Any) -> None:
        """Fill with zeros."""
        ...

    def weight(self, array: Array) -> tuple[ort.OrtValue, Any]:
        """What sessions read for a weight, and what has to be kept with it."""
        ...

    def bind_input(self, binding: Any, name: str, array: Any) -> None:
        """Let a session read an array."""
        ...

    def bind_output(self, binding: Any, name: str, array: Any) -> None:
        """Let a session write an array."""
        ...

    def bind_again(self, binding: Any, inputs: dict[str, Any]) -> None:
        """What is needed before a session runs once more on inputs that were bound."""
        ...


class HostMemory:
    """NumPy's arrays, which sessions read and write where they are; see `Memory`."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """As in `Memory`."""
        return np.zeros(shape, _numpy(dtype))

    def mirror(self, array: Array) -> Array:
        """As in `Memory`: the array itself."""
        return array

    def send(self, mirror: Array, array: Array) -> None:
        """As in `Memory`: nothing to do."""

    def view(self, array: Array, rows: slice, length: int | None = None) -> Array:
        """As in `Memory`."""
        return array[rows] if length is None else array[rows, :, :length]

    def copy(self, target: Array, source: Array) -> None:
        """As in `Memory`."""
        target[...] = source

    def pick(self, target: Array, source: Array, places: Array) -> None:
        """As in `Memory`."""
        target[:, 0] = source[np.arange(len(places)), places]

    def put(self, target: Array, array: Array) -> None:
        """As in `Memory`."""
        target[...] = array

    def get(self, source: Array) -> Array:
        """As in `Memory`."""
        return source.copy()

    def clear(self, target: Array) -> None:
        """As in `Memory`."""
        target[...] = 0

    def weight(self, array: Array) -> tuple[ort.OrtValue, Any]:
        """As in `Memory`: a view, and the array, which onnxruntime does not keep alive."""
        return ort_value(array), array

    def bind_input(self, binding: Any, name: str, array: Array) -> None:
        """As in `Memory`."""
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))

    def bind_output(self, binding: Any, name: str, array: Array) -> None:
        """As in `Memory`."""
        binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))

    def bind_again(self, binding: Any, inputs: dict[str, Any]) -> None:
        """As in `Memory`: sessions read what is there now."""


@dataclass(frozen=True)
class Placed:
    """A contiguous array in the memory of a device.

    Attributes
    ----------
    owner : holds the memory.
    address : where the array begins in it.
    """

    owner: ort.OrtValue
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, rows: slice) -> Placed:
        """Some of the rows."""
        a_row = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (rows.stop - rows.start, *self.shape[1:])
        return replace(self, address=self.address + rows.start * a_row, shape=shape)


class ProviderMemory:
    """The memory of a provider's device, through sessions of it; see `Memory`.

    Raw addresses are bound, so that rows of an array are bound as it is. What copies is a session
    as well: it runs in turn with those of the blocks, each of which is done when its run returns.

    Parameters
    ----------
    provider : runs the sessions.
    device : onnxruntime's name of the memory; that of the provider if None.
    """

    def __init__(self, provider: Provider, device: str | None = None) -> None:
        self._provider, self.device = provider, device or provider.device

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Placed:
        """As in `Memory`."""
        placed = self._empty(shape, _numpy(dtype))
        self.clear(placed)
        return placed

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Placed:
        try:
            value = ort.OrtValue.ortvalue_from_shape_and_type(
                shape, ELEMENT_TYPES[dtype], self.device, 0
            )
        except Exception as error:  # onnxruntime's own have no base but this
            needed = math.prod(shape) * dtype.itemsize
            raise MissingCapabilityError(
                f"provider {self._provider.name}: its device has no {needed:,} bytes left for an "
                f"array {tuple(shape)} ({str(error).splitlines()[0]}); a shorter context, fewer "
                "rows or a larger GPU help"
            ) from None
        return Placed(value, value.data_ptr(), tuple(shape), dtype)

    def mirror(self, array: Array) -> Placed:
        """As in `Memory`."""
        return self._empty(array.shape, array.dtype)

    def send(self, mirror: Placed, array: Array) -> None:
        """As in `Memory`."""
        mirror.owner.update_inplace(_bytes_of(array))

    def view(self, array: Placed, rows: slice, length: int | None = None) -> Placed:
        """As in `Memory`."""
        view = array.rows(rows)
        if length is None:
            return view
        count, one, capacity, width = view.shape
        assert one == 1 and (count == 1 or length == capacity), "rows that do not lie together"
        return replace(view, shape=(count, one, length, width))

    def copy(self, target: Placed, source: Placed) -> None:
        """As in `Memory`."""
        assert target.shape == source.shape and target.dtype == source.dtype
        if source.size:
            binding = self._copying
            self._bind_bytes(binding.bind_input, "x", source, (source.size,))
            self._bind_bytes(binding.bind_output, "y", target, (target.size,))
            self._copy_session.run_with_iobinding(binding)

    def pick(self, target: Placed, source: Placed, places: Array) -> None:
        """As in `Memory`: entries are rows of bytes."""
        count, entries, width = source.shape
        a_row = width * source.dtype.itemsize
        binding = self._pick_session.io_binding()
        self._bind_bytes(binding.bind_input, "x", source, (count * entries, a_row))
        binding.bind_cpu_input("places", np.arange(count) * entries + places % entries)
        self._bind_bytes(binding.bind_output, "y", target, (count, a_row))
        self._pick_session.run_with_iobinding(binding)

    def put(self, target: Placed, array: Array) -> None:
        """As in `Memory`."""
        assert target.shape == array.shape
        given = np.ascontiguousarray(array, target.dtype)
        self._put_bytes(target, given.reshape(-1).view(np.uint8))

    def _put_bytes(self, target: Placed, given: NDArray[np.uint8]) -> None:
        if len(given):
            binding = self._copying
            binding.bind_cpu_input("x", given)
            self._bind_bytes(binding.bind_output, "y", target, (len(given),))
            self._copy_session.run_with_iobinding(binding)

    def get(self, source: Placed) -> Array:
        """As in `Memory`."""
        if not source.size:
            return np.zeros(source.shape, source.dtype)
        binding = self._copy_session.io_binding()
        self._bind_bytes(binding.bind_input, "x", source, (source.size,))
        binding.bind_output("y")
        self._copy_session.run_with_iobinding(binding)
        (found,) = binding.copy_outputs_to_cpu()
        array: Array = found.view(source.dtype).reshape(source.shape)
        return array

    def clear(self, target: Placed) -> None:
        """As in `Memory`."""
        for begin in range(0, target.size, ZEROS):
            part = replace(target, address=target.address + begin)
            self._put_bytes(part, np.zeros(min(ZEROS, target.size - begin), np.uint8))

    def weight(self, array: Array) -> tuple[ort.OrtValue, Any]:
        """As in `Memory`: a copy on the device, and nothing else."""
        value = self._empty(array.shape, array.dtype).owner
        value.update_inplace(_bytes_of(np.ascontiguousarray(array)))
        return value, None

    def bind_input(self, binding: Any, name: str, array: Placed) -> None:
        """As in `Memory`."""
        kind = ELEMENT_TYPES[array.dtype]
        binding.bind_input(name, self.device, 0, kind, array.shape, array.address)

    def bind_output(self, binding: Any, name: str, array: Placed) -> None:
        """As in `Memory`."""
        kind = ELEMENT_TYPES[array.dtype]
        binding.bind_output(name, self.device, 0, kind, array.shape, array.address)

    def bind_again(self, binding: Any, inputs: dict[str, Placed]) -> None:
        """As in `Memory`: an input that only nodes on the CPU read is copied there when it is
        bound, not when the session runs.
        """
        for name, array in inputs.items():
            self.bind_input(binding, name, array)

    def _bind_bytes(self, bind: Any, name: str, array: Placed, shape: tuple[int, ...]) -> None:
        bind(name, self.device, 0, TensorProto.UINT8, shape, array.address)

    @cached_property
    def _copy_session(self) -> ort.InferenceSession:
        return self._session([helper.make_node("Identity", ["x"], ["y"])], {"x": ["n"]}, ["n"])

    @cached_property
    def _copying(self) -> Any:
        return self._copy_session.io_binding()

    @cached_property
    def _pick_session(self) -> ort.InferenceSession:
        node = helper.make_node("Gather", ["x", "places"], ["y"], axis=0)
        return self._session([node], {"x": ["rows", "size"], "places": ["n"]}, ["n", "size"])

    def _session(self, nodes: Any, inputs: dict[str, Any], output: Any) -> ort.InferenceSession:
        """One on bytes, but for places."""
        types = {"places": TensorProto.INT64}
        given = [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.UINT8), shape)
            for name, shape in inputs.items()
        ]
        made = [helper.make_tensor_value_info("y", TensorProto.UINT8, output)]
        model = helper.make_model(
            helper.make_graph(nodes, "copy", given, made),
            opset_imports=[helper.make_opsetid("", 19)], ir_version=10,
        )  # fmt: skip
        return self._provider.session(model.SerializeToString(), ort.SessionOptions())


def _bytes_of(array: Array) -> Array:
    """What onnxruntime takes of an array: it does not know bfloat16 of NumPy."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def _numpy(dtype: str) -> np.dtype[Any]:
    return NUMPY_DTYPES.get(dtype) or np.dtype(dtype)
