"""Saved runs: what a validation saw, to be judged and compared later or on another machine.

A directory of `run.json` (what ran, on what, with which cases), `measures.json` (what was measured,
from which the report follows again) and a `.npz` for each block, with what is kept of its outputs
(`kept_outputs`). Nothing in it is pickled. Where Polygraphy is installed, its files of inputs and
results lie beside them, in `polygraphy`; no command of ours needs those.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import ConfigError, GlmTrtError
from glm_trt.model.files import explain, sha256_of, sync_directory
from glm_trt.model.strict_json import parse_json
from glm_trt.validate.judging.measure import BlockResult, EndToEnd, Measures
from glm_trt.validate.reporting.report import targets_in
from glm_trt.validate.running.cases import Case
from glm_trt.validate.running.walk import Observation
from glm_trt.validate.saving.kept_outputs import Kept, keep, with_arrays
from glm_trt.validate.saving.packing import pack, unpack
from glm_trt.validate.saving.polygraphy_files import FOLDER, BlockResults, is_installed

FORMAT, FORMAT_VERSION = "glm-trt saved run", 3
FILE_NAME, MEASURES = "run.json", "measures.json"
Array = NDArray[Any]
Arrays = dict[str, Array]


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
        self._kept: list[Kept] = []
        self._results = BlockResults(dtype) if is_installed() else None

    def __enter__(self) -> Recorder:
        """Nothing to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Leave nothing half written."""
        shutil.rmtree(self._place, ignore_errors=True)

    def add(self, seen: Observation) -> None:
        """Keep what is needed of an observation; blocks come one after the other."""
        if seen.mode in ("propagated", "weights"):  # what it shows is in what is measured
            return
        self._kept.append(keep(seen))
        if self._results is not None:
            self._results.add(seen)

    def close_block(self, block: str) -> None:
        """Write what was added of one block."""
        arrays: dict[str, Array] = {}
        for kept in self._kept:
            number = str(len(self._entries))
            self._entries.append(
                {"block": block, "place": kept.place, "phase": kept.phase,
                 "hashes": kept.hashes, "arrays": number}
            )  # fmt: skip
            arrays |= {f"{number}/{name}": _storable(array) for name, array in kept.arrays()}
        self._kept = []
        if arrays:
            self._write(f"{block}.npz", lambda path: _write_arrays(path, arrays))
        if self._results is not None:
            self._results.save(self._place / FOLDER, block)

    def _write(self, file: str, write: Callable[[Path], None]) -> None:
        write(self._place / file)
        self._files[file] = sha256_of(self._place / file)

    def finish(
        self, context: dict[str, Any], config: dict[str, Any], measures: Measures, cases: list[Case]
    ) -> None:
        """Complete the run; `context` are the parts of its report that are not measured."""
        measured = pack({"results": measures.results, "end_to_end": measures.end_to_end})
        self._write(MEASURES, lambda path: _write_text(path, json.dumps(measured)))
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


def _write_arrays(path: Path, arrays: Arrays) -> None:
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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

    def measures(self) -> Measures:
        """What was measured, as it was when the run was saved."""
        path = self.directory / MEASURES
        kinds = {name: target.kind for name, target in self.targets.items()}
        measures = Measures(self.config, self.dtype, self.cases, kinds)
        try:
            measured = json.loads(path.read_bytes())
            measures.results = unpack(dict[str, BlockResult], measured["results"])
            measures.end_to_end = unpack(EndToEnd, measured["end_to_end"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"{path}: not whole: {type(error).__name__}: {error}") from None
        return measures

    def kept(self, block: str) -> Iterator[Kept]:
        """What was kept of one block's outputs, in order."""
        path = self.directory / f"{block}.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                by_entry: dict[str, Arrays] = {}
                for key in arrays.files:
                    number, _, name = key.partition("/")
                    by_entry.setdefault(number, {})[name] = arrays[key]
                for entry in self._entries:
                    if entry["block"] == block:
                        yield with_arrays(entry, by_entry.get(entry["arrays"], {}))
        except (OSError, KeyError, ValueError) as error:
            raise RecordingError(f"{path}: not whole: {error}") from None


def _case(x: dict[str, Any]) -> Case:
    ragged = None if x["ragged"] is None else np.array(x["ragged"], np.int64)
    return Case(x["name"], np.array(x["ids"], np.int64), x["prefill"], x["continued"], ragged)
