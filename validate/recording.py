"""Saved runs: what a validation saw, to be judged and compared later or on another machine.

A directory of `run.json` (what ran, on what, with which cases, and what each array is) and an
uncompressed `.npz` for each block. Nothing in it is pickled. Where Polygraphy is installed, its
files of inputs and results lie beside them, in `polygraphy`; no command of ours needs those.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.bindings import NUMPY_DTYPES
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import ConfigError, GlmTrtError
from glm_trt.model.files import explain, sha256_of, sync_directory
from glm_trt.model.strict_json import parse_json
from glm_trt.validate.cases import Case
from glm_trt.validate.polygraphy_files import FOLDER, is_installed, save_block
from glm_trt.validate.problem_kinds import Finding, ProblemKind
from glm_trt.validate.report import targets_in
from glm_trt.validate.walk import Observation

FORMAT, FORMAT_VERSION = "glm-trt saved run", 2
FILE_NAME = "run.json"
Array = NDArray[Any]


class RecordingError(GlmTrtError):
    """A saved run that is not whole: file, what was expected and found."""


class Recorder:
    """Writes a saved run; the directory appears when `finish` has been called, or not at all.

    Parameters
    ----------
    dtype : that of the backend.
    """

    def __init__(self, directory: Path, dtype: str) -> None:
        if directory.exists() and not (directory / FILE_NAME).is_file():
            raise RecordingError(f"{directory}: exists and is not a saved run")
        self.directory, self.dtype = directory, dtype
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            place = tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent)
        except OSError as error:
            raise RecordingError(explain(directory, error)) from error
        self._place = Path(place)
        self._entries: list[dict[str, Any]] = []
        self._files: dict[str, str] = {}

    def __enter__(self) -> Recorder:
        """Nothing to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Leave nothing half written."""
        shutil.rmtree(self._place, ignore_errors=True)

    def write(self, block: str, observations: list[Observation]) -> None:
        """Everything that was seen of one block."""
        arrays: dict[str, Array] = {}
        for seen in observations:
            entry = {
                "block": block, "case": seen.case, "mode": seen.mode, "begin": seen.begin,
                "prefill": seen.prefill, "findings": list(seen.findings),
                "arrays": f"{len(self._entries)}",
            }  # fmt: skip
            for group, chains in (("tensor", seen.tensors), ("score", seen.scores)):
                for chain, of in chains.items():
                    for name, array in of.items():
                        key = f"{entry['arrays']}/{group}/{chain}/{name}"
                        arrays[key] = _storable(array)
            if seen.rows is not None:
                arrays[f"{entry['arrays']}/rows"] = seen.rows
            self._entries.append(entry)
        file = f"{block}.npz"
        np.savez(self._place / file, allow_pickle=False, **arrays)
        self._files[file] = sha256_of(self._place / file)
        if is_installed():
            save_block(self._place / FOLDER, block, self.dtype, observations)

    def finish(self, context: dict[str, Any], config: dict[str, Any], cases: list[Case]) -> None:
        """Complete the run; `context` are the parts of its report that are not measured."""
        content = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "context": context,
            "config": config,
            "cases": [
                {"name": case.name, "ids": case.ids.tolist(), "prefill": case.prefill,
                 "continued": case.continued,
                 "ragged": None if case.ragged is None else case.ragged.tolist()}
                for case in cases
            ],
            "observations": self._entries, "files": self._files,
        }  # fmt: skip
        (self._place / FILE_NAME).write_text(json.dumps(content))
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self._place.chmod(0o755)  # mkdtemp's own is for its user alone
        self._place.rename(self.directory)
        sync_directory(self.directory.parent)


def _storable(array: Array) -> Array:
    """NumPy's files have no bfloat16; float32 holds each of its values."""
    wide = array.dtype == NUMPY_DTYPES["bfloat16"]
    return np.ascontiguousarray(array, np.float32 if wide else None)


class Recording:
    """A saved run, checked.

    Raises
    ------
    RecordingError
        If it is not one, or a file was changed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / FILE_NAME
        try:
            content = parse_json(path.read_bytes())
        except FileNotFoundError:
            raise RecordingError(
                f"{path}: not found; {directory} is no saved run (glm-trt validate --save)"
            ) from None
        except OSError as error:
            raise RecordingError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise RecordingError(f"{path}: not JSON: {error}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise RecordingError(f"{path}: the file of no saved run")
        if (version := content.get("format_version")) != FORMAT_VERSION:
            raise RecordingError(
                f"{path}: format version: expected {FORMAT_VERSION}, found {version}; save again"
            )
        try:
            self.context: dict[str, Any] = content["context"]
            self.config = ModelConfig.from_dict(content["config"], f"{path}: config")
            self.cases = [_case(x) for x in content["cases"]]
            self.files: dict[str, str] = content["files"]
            self._entries: list[dict[str, Any]] = content["observations"]
            self.dtype: str = self.context["backend"]["dtype"]
            self.targets = targets_in(self.context)
            self.blocks = list(dict.fromkeys(entry["block"] for entry in self._entries))
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise RecordingError(f"{path}: not whole: {type(error).__name__}: {error}") from None
        for name, digest in self.files.items():
            file = directory / name
            if Path(name).name != name or not file.is_file():
                raise RecordingError(f"{file}: missing, though {FILE_NAME} lists it")
            if (actual := sha256_of(file)) != digest:
                raise RecordingError(f"{file}: expected SHA-256 {digest}, found {actual}")

    def observations(self, block: str) -> Iterator[Observation]:
        """What was seen of one block, in order."""
        path = self.directory / f"{block}.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                by_entry: dict[str, list[str]] = {}
                for key in arrays.files:
                    by_entry.setdefault(key.partition("/")[0], []).append(key)
                for entry in self._entries:
                    if entry["block"] == block:
                        keys = by_entry.get(entry["arrays"], [])
                        yield _observation(entry, {key: arrays[key] for key in keys})
        except (OSError, KeyError, ValueError) as error:
            raise RecordingError(f"{path}: not whole: {error}") from None


def _case(x: dict[str, Any]) -> Case:
    ragged = None if x["ragged"] is None else np.array(x["ragged"], np.int64)
    return Case(x["name"], np.array(x["ids"], np.int64), x["prefill"], x["continued"], ragged)


def _observation(entry: dict[str, Any], arrays: dict[str, Array]) -> Observation:
    groups: dict[str, dict[str, dict[str, Array]]] = {"tensor": {}, "score": {}}
    rows = None
    for key, array in arrays.items():
        _, group, *rest = key.split("/", 3)
        if group == "rows":
            rows = array
        else:
            groups[group].setdefault(rest[0], {})[rest[1]] = array
    findings = tuple(
        Finding(output, text, ProblemKind(kind)) for output, text, kind in entry["findings"]
    )
    return Observation(
        entry["block"], entry["case"], entry["mode"], entry["begin"], entry["prefill"],
        groups["tensor"], groups["score"], findings, rows,
    )  # fmt: skip
