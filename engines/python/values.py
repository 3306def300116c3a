"""NumPy arrays as onnxruntime's values, mapped files included: nothing is copied."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from glm_trt.engines.python.onnxruntime_module import ort

ELEMENT_TYPES: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): onnx.TensorProto.FLOAT,
    np.dtype(np.float16): onnx.TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): onnx.TensorProto.BFLOAT16,
    np.dtype(np.int8): onnx.TensorProto.INT8,
    np.dtype(np.int32): onnx.TensorProto.INT32,
    np.dtype(np.int64): onnx.TensorProto.INT64,
}


def ort_value(array: NDArray[Any]) -> ort.OrtValue:
    """A view of `array`, which the caller keeps alive."""
    if array.dtype == ml_dtypes.bfloat16:  # which onnxruntime does not know of NumPy
        kind = ELEMENT_TYPES[array.dtype]
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), kind)
    return ort.OrtValue.ortvalue_from_numpy(array)


def array_of(value: ort.OrtValue) -> NDArray[Any]:
    """The array of a value that lies on the host."""
    if value.element_type() != onnx.TensorProto.BFLOAT16:
        array: NDArray[Any] = value.numpy()
        return array
    shape = tuple(value.shape())
    bits = np.zeros(shape, np.uint16)
    if bits.size:
        ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits.view(ml_dtypes.bfloat16)
