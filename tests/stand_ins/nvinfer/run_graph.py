"""Segments of standard operators, run by onnxruntime on device memory that is mapped here too."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

# nvinfer1::DataType
DTYPES: dict[int, Any] = {0: np.float32, 1: np.float16, 2: np.int8, 3: np.int32, 4: np.bool_,
                          5: np.uint8, 7: ml_dtypes.bfloat16, 8: np.int64}  # fmt: skip


def do(request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request for a segment.

    Parameters
    ----------
    request : `model`: a file and, behind "?", a number that tells it from others of its name;
        `offset` and `size` of the segment in it; `inputs` and `outputs`, each with name, dtype
        (nvinfer1::DataType), shape and address.

    Raises
    ------
    ValueError
        If an output has another shape or type than was asked for.
    """
    session = _session(request["model"], request["offset"], request["size"])
    # Inputs are copied: an output may lie where an input does.
    feeds = {x["name"]: _view(x).copy() for x in request["inputs"]}
    outputs = request["outputs"]
    results = session.run([x["name"] for x in outputs], feeds)
    for x, array in zip(outputs, results, strict=True):
        view = _view(x)
        if array.shape != view.shape or array.dtype != view.dtype:
            raise ValueError(
                f"{x['name']}: expected {view.dtype} {view.shape}, "
                f"found {array.dtype} {array.shape}"
            )
        view[...] = array
    return {}


@lru_cache(maxsize=256)
def _session(model: str, offset: int, size: int) -> ort.InferenceSession:
    with open(model.partition("?")[0], "rb") as file:
        file.seek(offset)
        segment = file.read(size)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(segment, options, providers=["CPUExecutionProvider"])


def _view(x: dict[str, Any]) -> np.ndarray[Any, Any]:
    dtype = np.dtype(DTYPES[x["dtype"]])
    count = int(np.prod(x["shape"]))
    if count == 0:
        return np.empty(x["shape"], dtype)
    raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(x["address"])
    return np.frombuffer(raw, dtype).reshape(x["shape"])
