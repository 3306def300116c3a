"""The GPU and its driver, asked of libcuda.so.1 itself."""

from __future__ import annotations

import ctypes
from typing import Any

from outcome import Outcome, Settings

# CUdevice_attribute
ATTRIBUTES = {"sms": 16, "major": 75, "minor": 76, "shared_bytes_opt_in": 97, "l2_bytes": 38}


def attributes(library: str = "libcuda.so.1") -> dict[str, Any] | None:
    """What the driver says of the first GPU; None without a driver or a GPU."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None
    device, number, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    memory = ctypes.c_size_t()
    if (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, 256, device)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    ):
        return None
    found: dict[str, Any] = {"name": name.value.decode(), "memory_bytes": memory.value}
    for what, which in ATTRIBUTES.items():
        if driver.cuDeviceGetAttribute(ctypes.byref(number), which, device):
            return None
        found[what] = number.value
    driver.cuDriverGetVersion(ctypes.byref(number))
    found["driver"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    found["target"] = f"sm{found.pop('major')}{found.pop('minor')}"
    return found


def run(settings: Settings) -> Outcome:
    """Name, architecture, memory."""
    found = attributes()
    if found is None:
        return Outcome("no GPU is found", problems=["the driver finds no GPU, or cannot be loaded"])
    line = (
        f"{found['name']}, {found['target']}, {found['memory_bytes'] / 2**30:.0f} GiB, "
        f"driver for CUDA {found['driver']}"
    )
    return Outcome(line, found)
