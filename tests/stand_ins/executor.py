"""The child process of `driver/executor.cpp`: it does what kernels and graphs do.

It maps the device memory of its parent at the same addresses and answers requests on a socket, a
length (4 bytes) and JSON each, until nobody asks any more.

executor.py SOCKET MEMORY ADDRESS BYTES
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
HERE = Path(__file__).parent
# Modules beside this one that do requests: each has `do(request) -> dict`.
ANSWERS = {"graph": "nvinfer.run_graph"}


def do_kernel(request: dict[str, Any]) -> dict[str, Any]:
    """One launch of a kernel of the plugin library."""
    from interpreted import described, launch

    values = [bytes.fromhex(text) for text in request["arguments"]]
    buffers = [ctypes.create_string_buffer(value, max(len(value), 8)) for value in values]
    kernel = described(Path(request["kernels"]))[request["image"]]
    launch(
        kernel, request["entry"], request["grid"], request["threads"], request["shared"],
        [ctypes.addressof(buffer) for buffer in buffers],
    )  # fmt: skip
    return {}


def answer(request: dict[str, Any], strays: Callable[[], list[int]]) -> dict[str, Any]:
    """What came of a request: an error is text."""
    try:
        what = request["do"]
        do = do_kernel if what == "kernel" else import_module(ANSWERS[what]).do
        # Addresses are texts: some readers of JSON make floats of numbers.
        return do(request) | {"strays": [str(address) for address in strays()]}
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return {"error": message, "strays": [str(address) for address in strays()]}


def main(descriptor: int, memory: int, address: int, size: int) -> None:
    """Answer until the other end is closed."""
    sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
    from stand_in_build import build_driver

    driver = ctypes.CDLL(str(build_driver()))
    driver.standInAttach(memory, ctypes.c_uint64(address), ctypes.c_uint64(size))
    driver.standInStrays.restype = ctypes.c_size_t
    found = (ctypes.c_uint64 * 64)()
    from glm_trt.plugins.common.interpreter import prepare_interpreter

    prepare_interpreter()

    def strays() -> list[int]:
        return found[: driver.standInStrays(found, 64)]

    with socket.socket(fileno=descriptor) as channel, channel.makefile("rwb") as pipe:
        while header := pipe.read(4):
            (length,) = struct.unpack("=I", header)
            reply = json.dumps(answer(json.loads(pipe.read(length)), strays)).encode()
            pipe.write(struct.pack("=I", len(reply)) + reply)
            pipe.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        main(*map(int, sys.argv[1:]))
