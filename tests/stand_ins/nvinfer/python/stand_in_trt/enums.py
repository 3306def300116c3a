"""Enumerations, with the values of NvInferRuntime.h."""

from __future__ import annotations

import enum
from typing import Any

import ml_dtypes
import numpy as np


class _Named(enum.IntEnum):
    """As pybind11 has them: equal to themselves, and to be counted."""


class DataType(_Named):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64 = range(9)


class TensorIOMode(_Named):
    NONE, INPUT, OUTPUT = range(3)


class ExecutionContextAllocationStrategy(_Named):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(_Named):
    LAZY, EAGER, NONE = range(3)


class CudaGraphStrategy(_Named):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class NetworkDefinitionCreationFlag(_Named):
    STRONGLY_TYPED = 0


class LayerType(_Named):
    """Standard operators are all one here."""

    ELEMENTWISE, PLUGIN_V3 = 9, 46


class BuilderFlag(_Named):
    TF32 = 6


class Severity(_Named):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ComputeCapability(_Named):
    NONE, CURRENT = 0, 1
    SM75, SM80, SM86, SM89, SM120, SM121 = 75, 80, 86, 89, 120, 121


NUMPY: dict[DataType, Any] = {
    DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT8: np.int8,
    DataType.INT32: np.int32, DataType.BOOL: np.bool_, DataType.UINT8: np.uint8,
    DataType.BF16: ml_dtypes.bfloat16, DataType.INT64: np.int64,
}  # fmt: skip


def nptype(dtype: DataType) -> Any:
    """As in the real module: numpy has no bfloat16 and no float8 of its own."""
    if dtype in (DataType.BF16, DataType.FP8):
        raise TypeError(
            f"Could not resolve TensorRT datatype to an equivalent numpy one: {dtype!r}"
        )
    return NUMPY[dtype]


def data_type(dtype: Any) -> DataType:
    """Of a numpy dtype.

    Raises
    ------
    ValueError
        If TensorRT has none such.
    """
    for found, numpy_type in NUMPY.items():
        if np.dtype(numpy_type) == np.dtype(dtype):
            return found
    raise ValueError(f"TensorRT has no type {dtype}")
