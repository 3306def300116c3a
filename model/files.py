"""Writing files so that none is ever half written, and hashing them."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from glm_trt.model.errors import BundleError

CHUNK = 1 << 24
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "UTF-8", codecs.BOM_UTF16_LE: "UTF-16",
                     codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip


def what_it_is(data: bytes) -> str | None:
    """What a file that should hold weights or JSON is instead, where its beginning tells."""
    if data.startswith(_LFS_POINTER):
        return (
            "a Git LFS pointer, not the file itself; fetch that with git lfs pull, or with "
            "hf download"
        )
    for mark, name in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return f"begins with the byte-order mark of {name}; save it as UTF-8 without one"
    return None if data.strip() else "empty"


def write_atomically(path: Path, write: bytes | Callable[[BinaryIO], None]) -> None:
    """Write to a temporary neighbour, fsync, rename.

    Raises
    ------
    BundleError
        If the disk is full or the file cannot be written; the neighbour is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            if isinstance(write, bytes):
                file.write(write)
            else:
                write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BundleError(explain(path, error)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def explain(path: Path, error: OSError) -> str:
    """One sentence for an error of the file system, and what to do about a full disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{path}: no space left to write it; free some and run the same command to resume"
    return f"{path}: cannot be written: {error.strerror}"


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`, which is there only meanwhile.

    Raises
    ------
    BundleError
        If another process holds it: `what` (such as "export to this place") is running.
    """
    from filelock import FileLock, Timeout  # here, as commands that lock nothing start without it

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BundleError(f"{path}: another {what} is running") from None
    try:
        yield
    finally:
        # While it is held: who opened it meanwhile sees that it is gone, and does not take it.
        path.unlink(missing_ok=True)
        lock.release()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
