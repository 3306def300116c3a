"""Polygraphy's files of inputs and results: written beside a saved run, and read.

Polygraphy is an optional dependency; what asks for its files ends with `MissingCapabilityError`
where it is absent.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.requirements import require
from glm_trt.validate.running.walk import Observation, written_positions

Arrays: TypeAlias = "dict[str, NDArray[Any]]"
Results: TypeAlias = "dict[str, list[Arrays]]"  # runner → iteration → output by name
FOLDER = "polygraphy"
# Runs in a file beside a saved run: the yardstick, the eager model in a dtype, and the backend.
EXACT, EAGER, FOUND = "exact", "eager-", "found"
# Of each block the first passes: to run a graph in Polygraphy, or to look at a difference there,
# few are enough. Its files hold arrays whole, a third larger than they are.
MOST_BYTES = 2 << 20


class ResultsError(GlmTrtError):
    """A file of results that cannot be read, or two that are not of the same run."""


def is_installed() -> bool:
    """Whether Polygraphy can be imported; does not import it."""
    return find_spec("polygraphy") is not None


class BlockResults:
    """Collects the isolated passes of a block, up to `MOST_BYTES`, for Polygraphy's files.

    Each pass is an iteration; the runners are `exact`, `eager-DTYPE` and `found`, the backend. The
    inputs are without weights. Caches are whole, as a graph gives them: what was fed with the
    positions that were written.
    """

    def __init__(self, dtype: str) -> None:
        self._chains = {EXACT: "exact", EAGER + dtype: "rounded", FOUND: "found"}
        self._clear()

    def _clear(self) -> None:
        self._inputs: list[Arrays] = []
        self._runs: Results = {runner: [] for runner in self._chains}
        self._size, self._full = 0, False

    def add(self, seen: Observation) -> None:
        """Keep a pass, if it is an isolated one and there is room for it and those before it."""
        if seen.mode != "isolated" or seen.inputs is None or self._full:
            return
        passes = {runner: _whole(seen, seen.tensors[of]) for runner, of in self._chains.items()}
        fed = _plain(seen.inputs)
        self._size += sum(x.nbytes for arrays in (fed, *passes.values()) for x in arrays.values())
        self._full = bool(self._inputs) and self._size > MOST_BYTES
        if not self._full:
            self._inputs.append(fed)
            for runner, arrays in passes.items():
                self._runs[runner].append(arrays)

    def save(self, folder: Path, block: str) -> None:
        """Write `BLOCK.json`, Polygraphy's RunResults, and `BLOCK.inputs.json`, what was fed; then
        let go of both. Nothing if nothing was kept.
        """
        if not self._inputs:
            return
        from polygraphy.comparator import RunResults
        from polygraphy.json import save_json

        folder.mkdir(exist_ok=True)
        results = RunResults()
        for runner, iterations in self._runs.items():
            results.add(iterations, runner_name=runner)
        results.save(str(folder / f"{block}.json"))
        save_json(self._inputs, str(folder / f"{block}.inputs.json"))
        self._clear()


def read_results(path: Path) -> Results:
    """The runs in a RunResults file. Raises `ResultsError`, `MissingCapabilityError`."""
    return {
        runner: [dict(iteration.items()) for iteration in iterations]
        for runner, iterations in _load(path, "results").items()
    }


def read_inputs(path: Path) -> list[Arrays]:
    """What `BlockResults` wrote of a block's inputs. Raises as `read_results`."""
    return [dict(iteration) for iteration in _load(path, "inputs")]


def _load(path: Path, what: str) -> Any:
    require(f"{path}: reading {what}", "validate", "polygraphy")
    from polygraphy.comparator import RunResults
    from polygraphy.exception import PolygraphyException
    from polygraphy.json import load_json
    from polygraphy.logger import G_LOGGER

    if not path.is_file():
        raise ResultsError(f"{path}: not found; expected a file of Polygraphy's {what}")
    expected = RunResults if what == "results" else list
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
            loaded = load_json(str(path))
    except (PolygraphyException, ValueError, KeyError, TypeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ResultsError(f"{path}: no file of Polygraphy's {what}: {first}") from None
    if not isinstance(loaded, expected):
        raise ResultsError(f"{path}: expected Polygraphy's {what}, found {type(loaded).__name__}")
    return loaded


def _whole(seen: Observation, outputs: Arrays) -> Arrays:
    assert seen.inputs is not None
    found = dict(outputs)
    for name, array in outputs.items():
        given = seen.inputs.get(name.removesuffix("_out"))
        if name.endswith("_out") and given is not None and given.shape != array.shape:
            cache = given.astype(array.dtype)
            past = seen.inputs["past_lengths"]
            np.put_along_axis(cache, written_positions(past, array.shape[2]), array, axis=2)
            found[name] = cache
    return _plain(found)


def _plain(arrays: Arrays) -> Arrays:
    """bfloat16, which NumPy's files have not, as float32, which holds each of its values."""
    return {
        name: array.astype(np.float32) if array.dtype == NUMPY_DTYPES["bfloat16"] else array
        for name, array in arrays.items()
    }
