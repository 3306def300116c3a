"""The stand-in driver's own rules: programs that keep them, and programs that break one each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import ORDERED, SEEDS
from stand_in_build import build_driver

HERE = Path(__file__).parent
VIOLATED = 86
# What a program returns at the first seed, and the rules that it violates.
WANTED: dict[str, tuple[Any, set[str]]] = {
    "rightly": (7, set()),
    "download without waiting": (1, set()),  # what the host had there
    "buffer reused too soon": (4, set()),  # what it was changed to
    "pageable buffer reused too soon": (4, set()),
    "fresh memory": (255, set()),
    "ordered by an event": (2, set()),
    "ordered by a stream": (2, set()),
    "blocking streams": (2, set()),
    "stream used after destroy": ("INVALID_HANDLE", {"used-after-destroy"}),
    "graph destroyed twice": ("INVALID_VALUE", {"used-after-destroy"}),
    "no handle at all": ("INVALID_HANDLE", {"unknown-handle"}),
    "freed twice": ("INVALID_VALUE", {"freed-twice"}),
    "released too often": ("INVALID_CONTEXT", {"released-too-often"}),
    "graph never destroyed": (None, {"left-in-context"}),
    "memory never freed": (None, {"left-in-context"}),
    "pinned never freed": (None, {"left-in-context"}),
    "context never released": (None, {"leaked"}),
    "context released first": (
        "CONTEXT_IS_DESTROYED", {"left-in-context", "released-too-often"},
    ),
    "copy beyond": ("INVALID_VALUE", {"not-allocated"}),
    "overlapping copy": ("INVALID_VALUE", {"overlapping-copy"}),
    "write behind": (["ILLEGAL_ADDRESS", "ILLEGAL_ADDRESS"], {"out-of-bounds"}),
    "write before": ("ILLEGAL_ADDRESS", {"out-of-bounds"}),
    "write behind odd size": ("ILLEGAL_ADDRESS", {"out-of-bounds"}),
    "write to the last byte": ("SUCCESS", set()),
    "allocated by device work": ("SUCCESS", {"allocation-in-device-work"}),
    "unmapped before the copy": ("LAUNCH_FAILED", {"host-memory-gone"}),
    "freed pinned memory": ("INVALID_VALUE", {"host-memory"}),
    "replay of a moved buffer": (["LAUNCH_FAILED"] * 3, {"not-allocated"}),
    "legacy stream while capturing": ("SUCCESS", {"legacy-stream-while-capturing"}),
    "pageable while capturing": ("SUCCESS", {"pageable-while-capturing"}),
    "stream destroyed while capturing": (
        "SUCCESS", {"destroyed-while-capturing", "left-in-context"},
    ),
    "function of an earlier context": ("INVALID_HANDLE", {"function-of-another-context"}),
    "out of memory when asked": (["SUCCESS", "OUT_OF_MEMORY"], set()),
    "more memory than there is": (["SUCCESS", "OUT_OF_MEMORY"], set()),
    "image for each architecture": (["INVALID_PTX", "SUCCESS", "SUCCESS"], set()),
}  # fmt: skip


def ask(script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LD_LIBRARY_PATH": str(build_driver().parent), **settings}
    command = [sys.executable, "-P", str(HERE / script), *arguments]
    return subprocess.run(
        command, env=environment | {"PYTHONPATH": str(HERE)}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each program."""
    done = ask("programs.py", str(tmp_path_factory.mktemp("reports")))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", WANTED)
def test_what_becomes_of_a_program(ended: dict[str, dict[str, Any]], name: str) -> None:
    result, rules = WANTED[name]
    found = ended[name]
    assert found["results"][0] == result, found["lines"]
    assert set(found["rules"]) == rules
    assert found["statuses"] == [VIOLATED if rules else 0]


@pytest.mark.parametrize("name", ["rightly", *ORDERED])
def test_order_is_drawn_where_nothing_orders(ended: dict[str, dict[str, Any]], name: str) -> None:
    results = ended[name]["results"]
    assert len(results) == SEEDS
    assert set(results) == ({1, 2} if name == "unordered" else {WANTED[name][0]})
    assert ended[name]["statuses"] == [0]


def test_the_host_cannot_touch_device_memory(ended: dict[str, dict[str, Any]]) -> None:
    assert ended["touched by the host"]["statuses"] == [-11]


def test_every_program_is_looked_at(ended: dict[str, dict[str, Any]]) -> None:
    assert set(ended) == {*WANTED, "unordered", "touched by the host"}


@pytest.mark.parametrize("target", ["sm80", "sm89", "sm90", "sm100", "sm120"])
def test_answers_are_those_of_a_real_driver(library: Path, target: str) -> None:
    """`conformance.py` found the same on an H200, whose driver was for CUDA 13.0."""
    images = [] if target in ("sm80", "sm89") else [str(image_of(library))]
    done = ask("conformance.py", *images, STAND_IN_TARGET=target)
    assert json.loads(done.stdout)["wrong"] == []
    assert done.returncode == 0


def image_of(library: Path) -> Path:
    return next((library.parent / "generated").glob("*.cubin"))


def test_without_a_driver_the_questions_say_so(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    done = ask("conformance.py", LD_LIBRARY_PATH=str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (3, '{"driver": "no libcuda.so.1"}')
