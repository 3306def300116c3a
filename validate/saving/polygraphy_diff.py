"""Two files of Polygraphy's results side by side, judged by our yardstick where one holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from glm_trt.validate.judging.choices import CHOSEN_BY
from glm_trt.validate.judging.compare import Difference
from glm_trt.validate.judging.figures import e, number
from glm_trt.validate.judging.limits import ALLOWED_RATIO, explain, pair_entry
from glm_trt.validate.judging.measure import Pair
from glm_trt.validate.saving.polygraphy_files import (
    EAGER,
    EXACT,
    FOLDER,
    FOUND,
    Arrays,
    ResultsError,
    read_results,
)

FORMAT, FORMAT_VERSION = "glm-trt results diff", 1
Report = dict[str, Any]


def diff_results(first: Path, second: Path) -> Report:
    """What the backends of two files gave, compared output by output.

    Of a file that `validate --save` wrote, that is the run `found`; of another, its first run.
    Where one of the files holds the exact outputs and those of the eager model in a dtype, each
    backend is judged by them, as in a validation, and `ok` asks for both to be good. Without them a
    value that is not finite is all that can be wrong by itself.

    Experts and positions that differ from the exact ones count as wrong: the scores that tell a
    near tie from an error are in saved runs alone. Rows where they differ are left out of
    `hidden_out` and `logits`.

    Raises
    ------
    ResultsError
        If one is no such file, or they are of other iterations, outputs or shapes.
    MissingCapabilityError
        Without Polygraphy.
    """
    for path in (first, second):
        if path.is_dir():
            raise ResultsError(
                f"{path}: a directory beside a file; of a saved run, name the block's file: "
                f"{path / FOLDER}/BLOCK.json"
            )
    files = {str(path): read_results(path) for path in (first, second)}
    if len(files) < 2:
        raise ResultsError(f"{first}: compared with itself")
    sides: dict[str, list[Arrays]] = {}
    for file, runs in files.items():
        if not runs or not all(runs.values()):
            raise ResultsError(f"{file}: no results in it")
        sides[file] = runs.get(FOUND) or next(iter(runs.values()))
    exact, eager, dtype = _yardstick(list(files.values()))
    _check_comparable(sides, exact)
    ours, theirs = sides[str(second)], sides[str(first)]
    report: Report = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "ok": True,
        "first": str(first), "second": str(second), "yardstick": dtype,
        "iterations": len(ours), "outputs": [], "choices": [], "problems": [],
    }  # fmt: skip
    for name in ours[0]:
        if name in CHOSEN_BY:
            _compare_choices(report, name, sides, exact)
            continue
        between = Difference(dtype or "float32")
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            between.add(b[name], a[name], f"iteration {i}", _equal_rows(name, a, b))
        entry: Report = {"output": name, "difference": number(between.relative),
                         "worst": between.worst}  # fmt: skip
        entry["judged"] = {}
        for side, found in sides.items():
            if exact and eager and dtype:
                judged = _judge(name, found, exact, eager, dtype)
                entry["judged"][side] = judged
                if not judged["ok"]:
                    report["problems"].append(f"{side}: {name}: {explain(judged)}")
            elif not all(np.isfinite(x[name]).all() for x in found):
                report["problems"].append(f"{side}: {name}: not finite")
        report["outputs"].append(entry)
    report["ok"] = not report["problems"]
    return report


def describe_results(report: Report) -> str:
    """The report in lines, for people."""
    lines = [f"{report['second']} against {report['first']}, {report['iterations']} iteration(s)"]
    for entry in report["outputs"]:
        line = f"  {entry['output']}: relative difference {e(entry['difference'])}"
        for path, judged in entry["judged"].items():
            verdict = "ok" if judged["ok"] else "out of tolerance"
            line += (
                f"\n    {path}: error {e(judged['error'])}, limit {e(judged['limit'])}: {verdict}"
            )
        lines.append(line)
    for entry in report["choices"]:
        lines.append(f"  {entry['output']}: {entry['equal']} of {entry['rows']} rows equal")
    if report["yardstick"] is None:
        lines.append("  no yardstick in either file: nothing is judged but that values are finite")
    lines += [f"  problem: {problem}" for problem in report["problems"]]
    return "\n".join([*lines, "ok" if report["ok"] else "not ok"])


def _yardstick(
    files: list[dict[str, list[Arrays]]],
) -> tuple[list[Arrays] | None, list[Arrays] | None, str | None]:
    for runs in files:
        for runner, eager in runs.items():
            dtype = runner.removeprefix(EAGER)
            if EXACT in runs and runner.startswith(EAGER) and dtype in ALLOWED_RATIO:
                return runs[EXACT], eager, dtype
    return None, None, None


def _check_comparable(sides: dict[str, list[Arrays]], exact: list[Arrays] | None) -> None:
    (first, theirs), (second, ours) = sides.items()
    for what, other in ((first, theirs), ("its yardstick", exact)):
        if other is None:
            continue
        if len(ours) != len(other):
            raise ResultsError(
                f"{second}: {len(ours)} iterations; expected {len(other)} as in {what}"
            )
        for i, (a, b) in enumerate(zip(other, ours, strict=True)):
            shapes = [{name: x.shape for name, x in arrays.items()} for arrays in (a, b)]
            if shapes[0] != shapes[1]:
                raise ResultsError(
                    f"{second}: iteration {i}: expected outputs {shapes[0]} as in {what}, found "
                    f"{shapes[1]}"
                )


def _equal_rows(name: str, a: Arrays, b: Arrays) -> Any:
    """Tokens [B, S] that chose the same; None if the output does not depend on a choice."""
    if name not in ("hidden_out", "logits"):
        return None
    rows = np.ones(b[name].shape[:-1], bool)
    for choice in CHOSEN_BY.keys() & b.keys():
        equal = (np.sort(a[choice]) == np.sort(b[choice])).all(-1)
        rows &= equal.reshape(rows.shape)
    return rows


def _judge(
    name: str, found: list[Arrays], exact: list[Arrays], eager: list[Arrays], dtype: str
) -> Report:
    pair = Pair.of(dtype)
    for i, (x, y, z) in enumerate(zip(found, exact, eager, strict=True)):
        rows = _equal_rows(name, x, y)
        if rows is not None:
            rows &= _equal_rows(name, z, y)
        tensors = {"found": x[name], "exact": y[name], "rounded": z[name]}
        pair.add(tensors, f"iteration {i}", rows)
    return pair_entry(pair, dtype)


def _compare_choices(
    report: Report, name: str, sides: dict[str, list[Arrays]], exact: list[Arrays] | None
) -> None:
    theirs, ours = sides.values()
    rows, equal = _count_equal(name, theirs, ours)
    report["choices"].append({"output": name, "rows": rows, "equal": equal})
    for path, found in sides.items() if exact else ():
        rows, equal = _count_equal(name, exact or [], found)
        if equal < rows:
            report["problems"].append(f"{path}: {name}: {rows - equal} of {rows} rows differ")


def _count_equal(name: str, first: list[Arrays], second: list[Arrays]) -> tuple[int, int]:
    equal = [
        (np.sort(a[name]) == np.sort(b[name])).all(-1) for a, b in zip(first, second, strict=True)
    ]
    return sum(x.size for x in equal), sum(int(x.sum()) for x in equal)
