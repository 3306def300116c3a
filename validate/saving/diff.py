"""Two saved runs side by side: the verdict on each, and how far they are from one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.validate.judging.choices import CHOSEN_BY
from glm_trt.validate.judging.compare import Difference
from glm_trt.validate.judging.figures import Report, number
from glm_trt.validate.judging.limits import ALLOWED_RATIO
from glm_trt.validate.judging.policy import NO_POLICY, read_policy
from glm_trt.validate.reporting.baseline import compare_with_baseline
from glm_trt.validate.reporting.report import assemble
from glm_trt.validate.reporting.report_text import problems
from glm_trt.validate.saving.kept_outputs import Kept
from glm_trt.validate.saving.recording import Recording, RecordingError

Key = tuple[str, str, str]  # block, output, phase


@dataclass
class _Between:
    """How far apart an output of both is, in what was kept of it; whether all of it is equal."""

    difference: Difference
    identical: bool = True


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
    between: dict[Key, _Between] = {}
    sets: dict[tuple[str, str], list[int]] = {}
    for block in ours.blocks:
        if block in theirs.blocks:
            for a, b in _pairs(theirs, ours, block):
                _add_difference(between, sets, a, b, ours.dtype)
    measures = [run.measures() for run in (theirs, ours)]
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


def _pairs(first: Recording, second: Recording, block: str) -> Iterator[tuple[Kept, Kept]]:
    """What both saw of one block, in order."""
    for a, b in zip_longest(first.kept(block), second.kept(block)):
        places = [None if x is None else (x.place, x.phase) for x in (a, b)]
        if places[0] != places[1]:
            raise RecordingError(
                f"{second.directory}: {block}: expected {places[0]} as in {first.directory}, found "
                f"{places[1]}"
            )
        yield a, b


def _add_difference(
    between: dict[Key, _Between],
    sets: dict[tuple[str, str], list[int]],
    a: Kept,
    b: Kept,
    dtype: str,
) -> None:
    """Pool the outputs of both backends on one input; rows with other choices are left out."""
    alike: NDArray[np.bool_] | None = None
    for name in b.sets.keys() & a.sets.keys():
        # Of logits the likeliest token; sets of what is chosen are hashes.
        ours, theirs = (x.sets[name][:, 0] if name == "logits" else x.sets[name] for x in (b, a))
        equal = ours == theirs
        counted = np.ones(len(equal), bool) if b.counted is None else b.counted
        pooled = sets.setdefault((b.block, name), [0, 0])
        pooled[0] += int(counted.sum())
        pooled[1] += int(equal[counted].sum())
        if name in CHOSEN_BY:
            alike = equal if alike is None else alike & equal
    for name in b.values.keys() & a.values.keys():
        pair = between.setdefault((b.block, name, b.phase), _Between(Difference(dtype)))
        pair.difference.add(b.values[name], a.values[name], b.place, b.rows_of(name, alike))
        pair.identical &= a.hashes[name] == b.hashes[name]


def _compared(
    first: Path,
    reports: list[Report],
    between: dict[Key, _Between],
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
                "difference": number(pair.difference.relative), "identical": pair.identical,
                "their_error": theirs[key]["error"], "error": ours[key]["error"],
            }
            for key in ours
            if (pair := between.get(key)) is not None
        ],
        "choices": [
            {"block": block, "output": name, "rows": rows, "equal": equal}
            for (block, name), (rows, equal) in sets.items()
        ],
    }  # fmt: skip
