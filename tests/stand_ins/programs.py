"""Programs that keep the driver's rules, and programs that break one each: `python programs.py`.

Each runs in a process of its own, over SEEDS orders. Prints one JSON object: for each program what
it returned, by seed, the rules that were violated, and the exit status.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance import NON_BLOCKING, PTX, Device, Pointer, Size, Wide, by

SEEDS = 50
WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
ORDERED = ("unordered", "ordered by an event", "ordered by a stream", "blocking streams")


class Program(Device):
    """A device that everything is given back of, if the program leaves it so."""

    def __init__(self) -> None:
        super().__init__()
        self.library = ctypes.CDLL("libcuda.so.1")
        self.kept: list[Any] = []  # callbacks

    def close(self) -> None:
        d = self.driver
        d.cuEventDestroy_v2(self.event)
        d.cuMemFree_v2(self.memory)
        d.cuMemFreeHost(self.pinned)
        d.cuStreamDestroy_v2(self.stream)
        d.cuStreamDestroy_v2(self.other)
        d.cuDevicePrimaryCtxRelease_v2(self.device)

    def queue(self, work: Callable[[], None]) -> None:
        """Device work of another library."""
        called = WORK(lambda _: work())
        self.kept.append(called)
        self.library.standInQueue(self.stream, b"work", called, None, None)

    def value(self) -> int:
        """Byte 0 of the pinned memory, as it is now."""
        assert self.pinned.value is not None
        return ctypes.string_at(self.pinned.value, 1)[0]

    def set_value(self, value: int) -> None:
        ctypes.memset(self.pinned, value, 64)

    def upload(self, stream: Pointer | None = None, host: Any = None) -> str:
        return self.driver.cuMemcpyHtoDAsync_v2(
            self.memory, host or self.pinned, Size(64), stream or self.stream
        )

    def download(self) -> str:
        return self.driver.cuMemcpyDtoHAsync_v2(self.pinned, self.memory, Size(64), self.stream)

    def wait(self, stream: Pointer | None = None) -> str:
        return self.driver.cuStreamSynchronize(stream or self.stream)


def rightly(p: Program) -> int:
    """Upload, record, replay, download; all in order and given back."""
    p.set_value(3)
    p.upload()
    p.wait()
    p.set_value(9)  # the stream has read it
    graph, executable = p.recorded()
    p.driver.cuGraphLaunch(executable, p.stream)
    found = p.read()
    p.driver.cuGraphExecDestroy(executable)
    p.driver.cuGraphDestroy(graph)
    return found


def download_without_waiting(p: Program) -> int:
    p.fill(5)
    p.set_value(1)
    p.download()
    return p.value()


def buffer_reused_too_soon(p: Program) -> int:
    p.set_value(3)
    p.upload()
    p.set_value(4)
    return p.read()


def pageable_buffer_reused_too_soon(p: Program) -> int:
    host = (ctypes.c_ubyte * 64)(*[3] * 64)
    p.upload(host=host)
    ctypes.memset(host, 4, 64)
    return p.read()


def fresh_memory(p: Program) -> int:
    return p.read()


def unordered(p: Program) -> int:
    p.fill(1)
    p.fill(2, p.other)
    p.driver.cuCtxSynchronize()
    return p.read()


def ordered_by_an_event(p: Program) -> int:
    p.fill(1)
    p.driver.cuEventRecord(p.event, p.stream)
    p.driver.cuStreamWaitEvent(p.other, p.event, 0)
    p.fill(2, p.other)
    p.driver.cuCtxSynchronize()
    return p.read()


def ordered_by_a_stream(p: Program) -> int:
    p.fill(1)
    p.fill(2)
    p.driver.cuCtxSynchronize()
    return p.read()


def blocking_streams(p: Program) -> int:
    """The legacy stream comes between them."""
    blocking = Pointer()
    p.driver.cuStreamCreate(by(blocking), 0)
    p.fill(1, blocking)
    p.driver.cuMemsetD8_v2(p.memory, ctypes.c_ubyte(2), Size(64))
    p.driver.cuCtxSynchronize()
    p.driver.cuStreamDestroy_v2(blocking)
    return p.read()


def stream_used_after_destroy(p: Program) -> str:
    gone = Pointer()
    p.driver.cuStreamCreate(by(gone), NON_BLOCKING)
    p.driver.cuStreamDestroy_v2(gone)
    return p.wait(gone)


def graph_destroyed_twice(p: Program) -> str:
    graph, executable = p.recorded()
    p.driver.cuGraphExecDestroy(executable)
    p.driver.cuGraphDestroy(graph)
    return p.driver.cuGraphDestroy(graph)


def no_handle_at_all(p: Program) -> str:
    return p.wait(Pointer(0x1234))


def freed_twice(p: Program) -> str:
    memory = p.allocate(64)
    p.driver.cuMemFree_v2(memory)
    return p.driver.cuMemFree_v2(memory)


def released_too_often(p: Program) -> str:
    p.close()
    return p.driver.cuDevicePrimaryCtxRelease_v2(p.device)


def graph_never_destroyed(p: Program) -> None:
    p.recorded()


def memory_never_freed(p: Program) -> None:
    p.allocate(100)


def pinned_never_freed(p: Program) -> None:
    p.driver.cuMemHostAlloc(by(Pointer()), Size(64), 0)


def context_never_released(p: Program) -> None:
    p.driver.cuDevicePrimaryCtxRetain(by(Pointer()), p.device)


def context_released_first(p: Program) -> str:
    p.driver.cuDevicePrimaryCtxRelease_v2(p.device)
    return p.driver.cuMemFree_v2(p.memory)


def copy_beyond(p: Program) -> str:
    return p.driver.cuMemsetD8Async(p.memory, ctypes.c_ubyte(1), Size(p.size + 1), p.stream)


def overlapping_copy(p: Program) -> str:
    further = Wide(p.memory.value + 32)
    return p.driver.cuMemcpyDtoDAsync_v2(further, p.memory, Size(64), p.stream)


def write_behind(p: Program) -> list[str]:
    p.queue(lambda: ctypes.memset(p.memory.value + p.size, 0, 1) and None)
    return [p.wait(), p.fill(1)]


def write_before(p: Program) -> str:
    p.queue(lambda: ctypes.memset(p.memory.value - 1, 0, 1) and None)
    return p.wait()


def write_behind_odd_size(p: Program) -> str:
    memory = p.allocate(100)
    p.queue(lambda: ctypes.memset(memory.value + 100, 0, 1) and None)
    found = p.wait()
    p.driver.cuMemFree_v2(memory)
    return found


def write_to_the_last_byte(p: Program) -> str:
    memory = p.allocate(100)
    p.queue(lambda: ctypes.memset(memory.value, 0, 100) and None)
    found = p.wait()
    p.driver.cuMemFree_v2(memory)
    return found


def touched_by_the_host(p: Program) -> None:
    ctypes.memset(p.memory.value, 0, 1)


def allocated_by_device_work(p: Program) -> str:
    p.queue(lambda: p.driver.cuMemAlloc_v2(by(Wide()), Size(64)) and None)
    return p.wait()


def unmapped_before_the_copy(p: Program) -> str:
    host = mmap.mmap(-1, 4096)
    view = ctypes.c_char.from_buffer(host)
    p.upload(host=Pointer(ctypes.addressof(view)))
    del view
    host.close()
    return p.wait()


def freed_pinned_memory(p: Program) -> str:
    pinned = Pointer()
    p.driver.cuMemHostAlloc(by(pinned), Size(64), 0)
    p.driver.cuMemFreeHost(pinned)
    return p.upload(host=pinned)


def replay_of_a_moved_buffer(p: Program) -> list[str]:
    graph, executable = p.recorded()
    p.driver.cuMemFree_v2(p.memory)
    p.memory = p.allocate(p.size)
    p.driver.cuGraphLaunch(executable, p.stream)
    found = [p.wait()]
    found.append(p.driver.cuGraphExecDestroy(executable))
    found.append(p.driver.cuGraphDestroy(graph))
    return found


def legacy_stream_while_capturing(p: Program) -> str:
    p.begin()
    p.driver.cuMemsetD8_v2(p.memory, ctypes.c_ubyte(1), Size(64))
    result, graph = p.end()
    p.driver.cuGraphDestroy(graph)
    return result


def pageable_while_capturing(p: Program) -> str:
    p.begin()
    p.upload(host=(ctypes.c_ubyte * 64)())
    result, graph = p.end()
    p.driver.cuGraphDestroy(graph)
    return result


def stream_destroyed_while_capturing(p: Program) -> str:
    captured = Pointer()
    p.driver.cuStreamCreate(by(captured), NON_BLOCKING)
    p.driver.cuStreamBeginCapture_v2(captured, 1)
    return p.driver.cuStreamDestroy_v2(captured)


def function_of_an_earlier_context(p: Program) -> str:
    kernel = p.kernel
    p.close()
    Program.__init__(p)
    p.kernel = kernel
    return p.launch()


def out_of_memory_when_asked(p: Program) -> list[str]:
    p.library.standInConfigure(b'{"fail": "cuMemAlloc:2"}')
    first, second = Wide(), Wide()
    found = [p.driver.cuMemAlloc_v2(by(of), Size(64)) for of in (first, second)]
    p.driver.cuMemFree_v2(first)
    return found


def more_memory_than_there_is(p: Program) -> list[str]:
    p.library.standInConfigure(b'{"memory": "8192"}')
    first, second = Wide(), Wide()
    found = [p.driver.cuMemAlloc_v2(by(of), Size(4096)) for of in (first, second)]
    p.driver.cuMemFree_v2(first)
    return found


def image_for_each_architecture(p: Program) -> list[str]:
    found = []
    for target in ("sm75", "sm80", "sm90"):
        p.library.standInConfigure(json.dumps({"target": target}).encode())
        found.append(p.driver.cuModuleLoadData(by(Pointer()), PTX))
    return found


NOT_CLOSED = {released_too_often, touched_by_the_host}
FIRST, LAST = rightly, image_for_each_architecture
PROGRAMS = [work for work in list(globals().values()) if callable(work)]
PROGRAMS = PROGRAMS[PROGRAMS.index(FIRST) : PROGRAMS.index(LAST) + 1]


def run(work: Callable[[Program], Any], seed: int, report: str) -> Any:
    """Status and result of a program in a process of its own; violations go to `report`."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.environ |= {"STAND_IN_SEED": str(seed), "STAND_IN_REPORT": report}
        program = Program()
        result = work(program)
        os.write(writer, json.dumps(result).encode())
        if work not in NOT_CLOSED:
            program.close()
        ctypes.CDLL(None).exit(0)  # with what libraries do at the end, which os._exit leaves out
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(text) if text else None


def main(scratch: str) -> None:
    found = {}
    for work in PROGRAMS:
        name = work.__name__.replace("_", " ")
        report = os.path.join(scratch, name)
        seeds = SEEDS if name in ORDERED or work is rightly else 1
        ended = [run(work, seed, report) for seed in range(seeds)]
        lines = Path(report).read_text().splitlines() if Path(report).exists() else []
        found[name] = {
            "statuses": sorted({status for status, _ in ended}),
            "results": [result for _, result in ended],
            "rules": sorted({line.split(": ")[1] for line in lines}),
            "lines": lines,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
