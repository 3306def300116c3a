"""The runtime's own passes, with states kept in place and rows padded, beside the exact model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.python.backend import Backend, Batch
from glm_trt.export.bundle.read import Bundle
from glm_trt.validate.judging.policy import RUNTIME
from glm_trt.validate.judging.problem_kinds import Finding, ProblemKind
from glm_trt.validate.running.walk import Flow, Observation

Array = NDArray[Any]
# A runtime holds every weight. Beyond so many bytes it is not run beside the eager model, of which
# one block at a time is in memory.
MOST_WEIGHTS = 1 << 30


def reason_to_skip(bundle: Bundle) -> str | None:
    """Why the runtime is not run; None where it is."""
    numbers = sum(math.prod(x.shape) for block in bundle.blocks for x in block.bindings)
    if 4 * numbers <= MOST_WEIGHTS:
        return None
    return (
        f"its weights take up to {4 * numbers / 1e9:.1f} GB, and it is run up to "
        f"{MOST_WEIGHTS / 1e9:.1f} GB"
    )


def runtime_observations(backend: Backend, flows: list[Flow]) -> Iterator[Observation]:
    """Logits of every case, and of the prompts side by side as rows of one batch.

    What does not run is an observation too, of no numbers.
    """
    for flow in flows:
        try:
            yield _alone(backend, flow)
        except Exception as error:  # a backend's own: onnxruntime's have no base but this
            yield _refused(flow, error)
    prompts = [flow for flow in flows if flow.case.continued]
    if len(prompts) > 1:
        try:
            yield from _side_by_side(backend, prompts)
        except Exception as error:
            yield from (_refused(flow, error) for flow in prompts)


def _alone(backend: Backend, flow: Flow) -> Observation:
    case = flow.case
    batch = backend.batch(*case.ids.shape)
    found = [
        _stepped(
            backend, batch, case.ids[:, piece.begin : piece.end],
            None if case.ragged is None else piece.lengths,
        )
        for piece in case.pieces
    ]  # fmt: skip
    return _observation(flow, np.concatenate(found, axis=1))


def _refused(flow: Flow, error: Exception) -> Observation:
    vocabulary = flow.values["exact"][0]["logits"].shape[-1]
    nothing = np.full((*flow.case.ids.shape, vocabulary), np.nan, np.float32)
    text = f"cannot be run: {str(error).strip()}"
    finding = Finding("logits", text, ProblemKind.CANNOT_RUN)
    return replace(_observation(flow, nothing), findings=(finding,))


def _side_by_side(backend: Backend, flows: list[Flow]) -> list[Observation]:
    """Prompts of several lengths as rows, then a token of each at a time."""
    prefills = np.array([flow.case.prefill for flow in flows])
    ids = np.zeros((len(flows), prefills.max()), np.int64)
    for row, flow in zip(ids, flows, strict=True):
        row[: flow.case.prefill] = flow.case.ids[0, : flow.case.prefill]
    batch = backend.batch(len(flows), max(flow.case.ids.shape[1] for flow in flows))
    first = _stepped(backend, batch, ids, prefills)
    steps = min(flow.case.ids.shape[1] - flow.case.prefill for flow in flows)
    later = [
        batch.step(
            np.stack([flow.case.ids[0, [flow.case.prefill + i]] for flow in flows]), logits="all"
        )
        for i in range(steps)
    ]
    seen = []
    for row, flow in enumerate(flows):
        parts = [first[row : row + 1, : flow.case.prefill], *(x[row : row + 1] for x in later)]
        seen.append(_observation(flow, np.concatenate(parts, axis=1)))
    return seen


def _stepped(backend: Backend, batch: Batch, ids: Array, lengths: Array | None = None) -> Array:
    """Logits of ids [B, S], in passes of as many tokens as the backend takes."""
    rows, length = ids.shape
    most = max(backend.most_tokens(length) // rows, 1)
    parts = []
    for begin in range(0, length, most):
        part = ids[:, begin : begin + most]
        counts = None if lengths is None else np.clip(lengths - begin, 0, part.shape[1])
        parts.append(batch.step(part, counts, logits="all"))
    return np.concatenate(parts, axis=1)


def _observation(flow: Flow, found: Array) -> Observation:
    tensors = {"found": {"logits": found}}
    for chain in ("exact", "rounded"):
        pieces = [piece["logits"] for piece in flow.values[chain]]
        tensors[chain] = {"logits": np.concatenate(pieces, axis=1)[:, : found.shape[1]]}
    rows = None if flow.case.counted is None else flow.case.counted[:, : found.shape[1]]
    return Observation(
        RUNTIME, flow.case.name, "propagated", 0, flow.case.prefill, tensors, rows=rows
    )
