"""Runs of a bundle's blocks shared by tests: of a block whose graph and weights are the same, once.

A fault is in one block, or a few. What the others make of the same input is what they make in the
right bundle, and the walk of `bisect` asks again what that of `validate` did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from references import Arrays, digest

from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.export.bundle.format import Block
from glm_trt.model.checkpoint.bindings import tensor_names
from glm_trt.validate.running.subjects import GraphSubject

_KEPT: dict[tuple[str, str], Arrays] = {}  # of right bundles


@contextmanager
def runs_shared(right: bool) -> Iterator[None]:
    """Within, a run that was made before is not made again: within, or with a `right` bundle."""
    mine: dict[tuple[str, str], Arrays] = _KEPT if right else {}
    with pytest.MonkeyPatch.context() as patch:
        for of in (OnnxruntimeBackend, GraphSubject):
            patch.setattr(of, "run_block", _remembering(of.run_block, mine))
        yield


def _remembering(run: Callable[..., Arrays], mine: dict[tuple[str, str], Arrays]) -> Any:
    def run_block(subject: Any, block: Block, inputs: Arrays) -> Arrays:
        if subject._marked.get(block.kind):  # gives more than its outputs
            return run(subject, block, inputs)
        key = _content(subject, block), digest(inputs)
        if key not in _KEPT and key not in mine:
            mine[key] = run(subject, block, inputs)
        return {name: array.copy() for name, array in (mine.get(key) or _KEPT[key]).items()}

    return run_block


def _content(subject: Any, block: Block) -> str:
    """Of all that the block runs: who, its graph, what is bound, the files that it lies in."""
    known = vars(subject).setdefault("contents", {})
    if block.name not in known:
        bundle = subject.bundle
        found = hashlib.blake2b(repr((type(subject), subject.dtype, block)).encode())
        names = tensor_names(block.bindings)
        files = [x.path for x in bundle.weights.files if any(name in x.tensors for name in names)]
        for path in (bundle.graph_path(block.kind, subject.dtype), *files):
            found.update(path.name.encode() + path.read_bytes())
        known[block.name] = found.hexdigest()
    return known[block.name]
