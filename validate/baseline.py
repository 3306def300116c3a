"""Holding a report against an earlier one: what is within tolerance may have become worse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glm_trt.validate.figures import Report, e
from glm_trt.validate.policy import END_TO_END, RUNTIME
from glm_trt.validate.report_files import ReportError, read_report

# An error may grow by so much. Runs of one version repeat bit for bit on one machine; with another
# number of threads sums are in another order, which moves the errors of a whole block by up to a
# tenth (the tiny checkpoint on one core against two: 0.89 to 1.02 times).
ALLOWED_GROWTH = 1.25
# And that of the worst row, an extreme, by so much: the same change of threads moves it by up to
# 1.28 times, the graph as it is against the one rewritten for onnxruntime by 1.12.
ALLOWED_ROW_GROWTH = 2.0
_GROWTH = (
    ("error", "error", ALLOWED_GROWTH),
    ("row_error", "error in the worst row", ALLOWED_ROW_GROWTH),
)
# Of counts that need not repeat (near ties), so many standard deviations of the difference of two
# that have one rate are chance: √(n + m) of n and m.
CHANCE = 5.0


def compare_with_baseline(report: Report, path: Path, earlier: Report | None = None) -> Report:
    """The report's `baseline`: what has become worse since the report in `path`, which is `earlier`
    if it has been read already.

    Raises
    ------
    ReportError
        If `path` is no report, or one of another checkpoint, other blocks, cases or dtype.
    """
    earlier = earlier or read_report(path)
    _check_comparable(report, earlier, path)
    roundoff = report["tolerance"]["unit_roundoff"]
    regressions = [*_of_outputs(report, earlier, roundoff), *_of_choices(report, earlier),
                   *_end_to_end(report, earlier), *_of_runtime(report, earlier)]  # fmt: skip
    return {"file": str(path), "created": earlier["created"], "ok": not regressions,
            "regressions": regressions}  # fmt: skip


def _check_comparable(report: Report, earlier: Report, path: Path) -> None:
    def same(what: str, now: Any, was: Any) -> None:
        if now != was:
            raise ReportError(f"{path}: {what}: expected {now}, found {was}; not comparable")

    same("dtype", report["backend"]["dtype"], earlier["backend"]["dtype"])
    now, was = (of["environment"]["checkpoint"] for of in (report, earlier))
    same("checkpoint", ", ".join(sorted(now)), ", ".join(sorted(was)))
    for file, digest in now.items():
        same(f"checkpoint, {file}", digest, was[file])
    same("blocks", _names(report), _names(earlier))
    same("cases", _cases(report), _cases(earlier))
    for name in ("seed", "text_sha256"):
        same(name, report["options"][name], earlier["options"][name])


def _names(report: Report) -> str:
    return ", ".join(block["name"] for block in report["blocks"])


def _cases(report: Report) -> str:
    return ", ".join(
        f"{case['name']} ({case['shape'][0]} x {case['shape'][1]})" for case in report["cases"]
    )


def _worse(now: float | None, was: float | None, allowed: float, least: float) -> bool:
    """Whether an error grew by more than is allowed; None is not finite."""
    if was is None:
        return False
    return now is None or now > max(allowed * was, least)


def _more(now: int, was: int) -> bool:
    """Whether a count grew by more than is allowed and than chance explains."""
    return now > ALLOWED_GROWTH * was and now - was > CHANCE * math.sqrt(now + was)


def _grown(block: str, output: str, text: str, phase: str = "all") -> Report:
    return {"block": block, "output": output, "phase": phase, "text": text}


def _of_outputs(report: Report, earlier: Report, least: float) -> Iterator[Report]:
    """Where an isolated output's error, over all elements or in its worst row, has grown, or what
    was compared is not there now.
    """
    blocks = {block["name"]: block["isolated"] for block in report["blocks"]}
    for block in earlier["blocks"]:
        for name, phases in block["isolated"].items():
            for phase, was in phases.items():
                where = f"{block['name']} {name}, {phase}"
                entry = blocks[block["name"]].get(name, {}).get(phase)
                text = f"{where}: was compared, is missing now"
                if entry is not None:
                    text = _growth(where, entry, was, least)
                if text:
                    yield _grown(block["name"], name, text, phase)


def _growth(where: str, entry: Report, was: Report, least: float) -> str:
    for key, what, allowed in _GROWTH:
        if _worse(entry[key], was[key], allowed, least):
            return (
                f"{where}: {what} {e(entry[key])}, was {e(was[key])}; {allowed} times that is "
                "allowed"
            )
    return ""


def _of_choices(report: Report, earlier: Report) -> Iterator[Report]:
    now = {block["name"]: block["choices"] for block in report["blocks"]}
    ties: dict[str, list[int]] = {}
    for block in earlier["blocks"]:
        for name, was in block["choices"].items():
            where, entry = f"{block['name']} {name}", now[block["name"]].get(name)
            if entry is None:
                yield _grown(block["name"], name, f"{where}: was compared, is missing now")
                continue
            if entry["wrong"] > was["wrong"]:
                text = f"{where}: {entry['wrong']} wrong, was {was['wrong']}"
                yield _grown(block["name"], name, text)
            counts = [entry["near_ties"], was["near_ties"]]
            if _more(*counts):
                yield _grown(block["name"], name, _ties_text(where, *counts))
            sums = ties.setdefault(name, [0, 0])
            ties[name] = [a + b for a, b in zip(sums, counts, strict=True)]
    # A few more in every block are many in all.
    for name, counts in ties.items():
        if _more(*counts):
            yield _grown("all blocks", name, _ties_text(f"all blocks, {name}", *counts))


def _ties_text(where: str, now: int, was: int) -> str:
    return f"{where}: {now} near ties, was {was}; more than by chance"


def _end_to_end(report: Report, earlier: Report) -> Iterator[Report]:
    now, was = report["end_to_end"], earlier["end_to_end"]
    # Squares of differences of logits, so their growth is squared too.
    kl, kl_was = now["kl_divergence"]["mean"], was["kl_divergence"]["mean"]
    floor = was["dtype_kl_divergence"]["mean"] or 0.0
    if kl_was is not None and (kl is None or kl > ALLOWED_GROWTH**2 * max(kl_was, floor)):
        yield _grown(END_TO_END, "logits", f"mean KL divergence {e(kl)}, was {e(kl_was)}")
    before = {case["case"]: case for case in was["greedy"]}
    for case in now["greedy"]:
        wrong = before[case["case"]]["wrong"]
        if case["wrong"] > wrong:
            text = f"{case['case']}: {case['wrong']} wrong tokens, was {wrong}"
            yield _grown(END_TO_END, "greedy", text)
    # One near tie more at a beginning sets a whole case aside.
    longest = max(math.prod(case["shape"]) for case in report["cases"])
    aside, aside_was = now["tokens_set_aside"], was["tokens_set_aside"]
    if aside > ALLOWED_GROWTH * aside_was + longest:
        text = f"{aside} tokens set aside after near ties, was {aside_was}"
        yield _grown(END_TO_END, "logits", text)


def _of_runtime(report: Report, earlier: Report) -> Iterator[Report]:
    """A backend whose runtime was compared and is not now."""
    same = report["backend"]["name"] == earlier["backend"]["name"]
    if same and earlier["runtime"] and not report["runtime"]:
        text = f"was compared, is not now: {report['runtime_skipped']}"
        yield _grown(RUNTIME, "logits", f"{RUNTIME}: {text}")
