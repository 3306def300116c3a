"""NumPy arrays as onnxruntime's values, mapped files included: nothing is copied."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

# What is stored but has no dtype in onnxruntime's own view of NumPy: as it is typed in a graph.
_TYPED = {
    np.dtype(ml_dtypes.bfloat16): (np.uint16, onnx.TensorProto.BFLOAT16),
}
ELEMENT_TYPES: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): onnx.TensorProto.FLOAT,
    np.dtype(np.float16): onnx.TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): onnx.TensorProto.BFLOAT16,
    np.dtype(np.int8): onnx.TensorProto.INT8,
}


def ort_value(array: NDArray[Any]) -> ort.OrtValue:
    """A view of `array`, which the caller keeps alive."""
    if array.dtype in _TYPED:
        plain, kind = _TYPED[array.dtype]
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(plain), kind)
    return ort.OrtValue.ortvalue_from_numpy(array)
