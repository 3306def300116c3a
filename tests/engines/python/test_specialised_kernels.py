"""What TensorRT-RTX compiled is kept beside the plan, on objects that answer as its module does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from glm_trt.engines.build.flavours import Flavour
from glm_trt.engines.python.specialised_kernels import SpecialisedKernels
from glm_trt.model.files import locked

NAME = "dense.1.7.nvidia-rtx-a.kernels"


class Cache:
    """Takes what begins as its own; gives what it took and what was compiled since."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        good = blob.startswith(b"ours")
        self.content = blob if good else b""
        return good

    def serialize(self) -> bytes:
        return self.content


class Engine:
    def create_runtime_config(self) -> Any:
        return SimpleNamespace(create_runtime_cache=Cache)


def opened(plan: Path, version: str = "1.7", gpu: str = "nvidia-rtx-a") -> SpecialisedKernels:
    flavour = Flavour("tensorrt-rtx", SimpleNamespace(__version__=version))
    kernels = SpecialisedKernels.of(flavour, Engine(), plan, gpu)
    assert kernels is not None
    return kernels


def compiled(kernels: SpecialisedKernels, content: bytes) -> bytes:
    """What was read from before; then something is compiled, and it ends."""
    cache: Any = kernels._cache
    before: bytes = cache.content
    cache.content = content
    kernels.close()
    kernels.close()
    return before


def test_kept_for_the_next_start(tmp_path: Path) -> None:
    plan = tmp_path / "dense.plan"
    assert compiled(opened(plan), b"ours 1") == b""
    assert compiled(opened(plan), b"ours 1, 2") == b"ours 1"
    written = (tmp_path / NAME).stat()
    assert compiled(opened(plan), b"ours 1, 2") == b"ours 1, 2"
    assert (tmp_path / NAME).stat().st_mtime_ns == written.st_mtime_ns  # nothing was new
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert compiled(opened(plan, gpu="nvidia-rtx-b"), b"") == b""
    assert compiled(opened(plan, version="1.8"), b"") == b""


def test_what_is_refused_is_replaced(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"of another driver")
    assert compiled(opened(tmp_path / "dense.plan"), b"ours") == b""
    assert (tmp_path / NAME).read_bytes() == b"ours"


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    """Nothing fails: in the place of the folder there is a file, or another process writes."""
    (tmp_path / "file").write_text("")
    compiled(opened(tmp_path / "file" / "dense.plan"), b"ours")
    with locked(tmp_path / f".{NAME}.lock", "test"):
        compiled(opened(tmp_path / "dense.plan"), b"ours")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_flavours_that_compile_when_they_build_have_none(tmp_path: Path) -> None:
    flavour = Flavour("tensorrt", SimpleNamespace(__version__="11"))
    assert SpecialisedKernels.of(flavour, Engine(), tmp_path / "dense.plan", "gpu") is None
