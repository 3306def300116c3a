"""Two saved runs side by side: the verdict on each, and how far they are from one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glm_trt.validate.baseline import compare_with_baseline
from glm_trt.validate.choices import CHOSEN_BY
from glm_trt.validate.compare import Difference
from glm_trt.validate.measure import Measures, is_state, state_mask
from glm_trt.validate.policy import NO_POLICY, read_policy
from glm_trt.validate.recording import Recording, RecordingError
from glm_trt.validate.report import assemble
from glm_trt.validate.report_text import problems
from glm_trt.validate.verdict import ALLOWED_RATIO, Report, number
from glm_trt.validate.walk import Observation


@dataclass(frozen=True)
class DiffOptions:
    """How to judge: a policy file, and an earlier report that is not to be regressed from."""

    policy: Path | None = None
    baseline: Path | None = None


def diff_runs(first: Path, second: Path, options: DiffOptions = DiffOptions()) -> Report:
    """The report on the run saved in `second`, as its validation gave it, with what `first` says
    and the differences of the two in `compared`. `ok` asks for both to be.

    Raises
    ------
    RecordingError
        If one is not whole, or they are runs of other models, blocks or cases.
    PolicyError, ReportError
        As in a validation.
    """
    theirs, ours = Recording(first), Recording(second)
    _check_comparable(theirs, ours)
    measures = [_measures(run) for run in (theirs, ours)]
    between: dict[tuple[str, str, str], Difference] = {}
    sets: dict[tuple[str, str], list[int]] = {}
    for block in dict.fromkeys([*ours.blocks, *theirs.blocks]):
        for pair in _pairs(theirs, ours, block):
            for seen, pooled in zip(pair, measures, strict=True):
                if seen is not None:
                    pooled.add(seen)
            if pair[0] is not None and pair[1] is not None and pair[1].mode != "propagated":
                _add_difference(between, sets, pair[0], pair[1], ours.dtype)
    reports = [
        assemble(run.context, pooled, _policy(run, options))
        for run, pooled in zip((theirs, ours), measures, strict=True)
    ]
    report = reports[1]
    if options.baseline:
        report["baseline"] = compare_with_baseline(report, options.baseline)
    report["compared"] = _compared(first, reports, between, sets)
    report["ok"] = report["ok"] and reports[0]["ok"] and (
        report["baseline"] is None or report["baseline"]["ok"]
    )  # fmt: skip
    return report


def _measures(run: Recording) -> Measures:
    kinds = {name: target.kind for name, target in run.targets.items()}
    return Measures(run.config, run.dtype, run.cases, kinds)


def _policy(run: Recording, options: DiffOptions) -> Any:
    if options.policy is None:
        return NO_POLICY
    return read_policy(options.policy, run.targets, ALLOWED_RATIO[run.dtype])


def _check_comparable(first: Recording, second: Recording) -> None:
    def same(what: str, a: Any, b: Any) -> None:
        if a != b:
            raise RecordingError(
                f"{second.directory}: {what}: expected {a} as in {first.directory}, found {b}"
            )

    # The same weights, wherever they lay.
    same("checkpoint", *(run.context["environment"]["checkpoint"] for run in (first, second)))
    same("blocks", *(", ".join(run.targets) for run in (first, second)))
    same("cases", *([case.name for case in run.cases] for run in (first, second)))
    for a, b in zip(first.cases, second.cases, strict=True):
        same_passes = a.prefill == b.prefill and _listed(a.ragged) == _listed(b.ragged)
        if not np.array_equal(a.ids, b.ids) or not same_passes:
            raise RecordingError(
                f"{second.directory}: case {a.name}: other ids than in {first.directory}"
            )


def _listed(ragged: Any) -> Any:
    return None if ragged is None else ragged.tolist()


def _pairs(
    first: Recording, second: Recording, block: str
) -> Iterator[tuple[Observation | None, Observation | None]]:
    """What both saw of one block, in order; alone what one saw that the other did not."""
    if block not in first.blocks or block not in second.blocks:
        for seen in first.observations(block) if block in first.blocks else ():
            yield seen, None
        for seen in second.observations(block) if block in second.blocks else ():
            yield None, seen
        return
    for a, b in zip(first.observations(block), second.observations(block), strict=True):
        if (a.case, a.mode, a.begin) != (b.case, b.mode, b.begin):
            raise RecordingError(
                f"{second.directory}: {block}: expected {a.place}, found {b.place}"
            )
        yield a, b


def _add_difference(
    between: dict[tuple[str, str, str], Difference],
    sets: dict[tuple[str, str], list[int]],
    a: Observation,
    b: Observation,
    dtype: str,
) -> None:
    """Pool the outputs of both backends on one input; rows with other choices are left out."""
    theirs, ours = a.tensors["found"], b.tensors["found"]
    rows = b.rows
    for name in CHOSEN_BY.keys() & ours.keys() & theirs.keys():
        equal = (np.sort(theirs[name]) == np.sort(ours[name])).all(-1)
        pooled = sets.setdefault((b.block, name), [0, 0])
        pooled[0] += equal.size
        pooled[1] += int(equal.sum())
        shape = ours["hidden_out"].shape[:-1]
        rows = equal.reshape(shape) if rows is None else rows & equal.reshape(shape)
    for name in (ours.keys() & theirs.keys()) - CHOSEN_BY.keys():
        mask = state_mask(name, b.rows) if is_state(name) else rows
        pooled_difference = between.setdefault((b.block, name, b.phase), Difference(dtype))
        pooled_difference.add(ours[name], theirs[name], b.place, mask)


def _compared(
    first: Path,
    reports: list[Report],
    between: dict[tuple[str, str, str], Difference],
    sets: dict[tuple[str, str], list[int]],
) -> Report:
    theirs, ours = (
        {
            (block["name"], name, phase): entry
            for block in report["blocks"]
            for name, phases in block["isolated"].items()
            for phase, entry in phases.items()
        }
        for report in reports
    )
    return {
        "directory": str(first),
        "created": reports[0]["created"],
        "backend": reports[0]["backend"],
        "ok": reports[0]["ok"],
        "problems": [{"where": where, "text": text} for where, text in problems(reports[0])],
        "outputs": [
            {
                "block": key[0], "output": key[1], "phase": key[2],
                "difference": number(difference.relative),
                "their_error": theirs[key]["error"], "error": ours[key]["error"],
            }
            for key in ours
            if (difference := between.get(key)) is not None
        ],
        "choices": [
            {"block": block, "output": name, "rows": rows, "equal": equal}
            for (block, name), (rows, equal) in sets.items()
        ],
    }  # fmt: skip
