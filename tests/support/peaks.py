"""How much memory a piece of code takes at its peak, whatever the process took before it.

`ru_maxrss` never sinks: after a larger test in the same process it hides what is measured, and a
difference from what is resident counts the other test's peak.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROCESS = Path("/proc/self")


def _resident(field: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status[field].split()[0]) * 1024


class Peak:
    """`bytes` is known when the `with` block has ended."""

    bytes = 0


@contextmanager
def peak_of_block() -> Iterator[Peak]:
    """Bytes that become resident within a `with` block, at most, above those at its beginning."""
    peak = Peak()
    # Linux: "5" sets the peak of the process back to what is resident (proc(5), clear_refs).
    (PROCESS / "clear_refs").write_text("5")
    before = _resident("VmRSS")
    yield peak
    peak.bytes = _resident("VmHWM") - before
