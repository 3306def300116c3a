"""Holding a report against an earlier one: what is within tolerance may have become worse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glm_trt.validate.policy import END_TO_END
from glm_trt.validate.report_files import ReportError, read_report
from glm_trt.validate.verdict import Report, e

# An error may grow by so much. Runs of one version repeat bit for bit on one machine; with another
# number of threads sums are in another order, which moves the errors of a whole block by up to a
# tenth (the tiny checkpoint on one core against two: 0.89 to 1.02 times).
ALLOWED_GROWTH = 1.25


def compare_with_baseline(report: Report, path: Path, earlier: Report | None = None) -> Report:
    """The report's `baseline`: what has become worse since the report in `path`, which is `earlier`
    if it has been read already.

    Raises
    ------
    ReportError
        If `path` is no report, or one of other blocks, cases or dtype.
    """
    earlier = earlier or read_report(path)
    _check_comparable(report, earlier, path)
    roundoff = report["tolerance"]["unit_roundoff"]
    regressions = [*_of_outputs(report, earlier, roundoff), *_of_choices(report, earlier),
                   *_end_to_end(report, earlier)]  # fmt: skip
    return {"file": str(path), "created": earlier["created"], "ok": not regressions,
            "regressions": regressions}  # fmt: skip


def _check_comparable(report: Report, earlier: Report, path: Path) -> None:
    def same(what: str, now: Any, was: Any) -> None:
        if now != was:
            raise ReportError(f"{path}: {what}: expected {now}, found {was}; not comparable")

    same("dtype", report["backend"]["dtype"], earlier["backend"]["dtype"])
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


def _worse(now: float | None, was: float | None, least: float) -> bool:
    """Whether an error grew by more than is allowed; None is not finite."""
    if was is None:
        return False
    return now is None or now > max(ALLOWED_GROWTH * was, least)


def _of_outputs(report: Report, earlier: Report, least: float) -> Iterator[Report]:
    """Where an isolated output's error has grown."""
    before = {block["name"]: block["isolated"] for block in earlier["blocks"]}
    for block in report["blocks"]:
        for name, phases in block["isolated"].items():
            for phase, entry in phases.items():
                was = before[block["name"]].get(name, {}).get(phase)
                if was is None or not _worse(entry["error"], was["error"], least):
                    continue
                yield {
                    "block": block["name"], "output": name, "phase": phase,
                    "text": f"{block['name']} {name}, {phase}: error {e(entry['error'])}, was "
                    f"{e(was['error'])}; {ALLOWED_GROWTH} times that is allowed",
                }  # fmt: skip


def _of_choices(report: Report, earlier: Report) -> Iterator[Report]:
    before = {block["name"]: block["choices"] for block in earlier["blocks"]}
    for block in report["blocks"]:
        for name, entry in block["choices"].items():
            was = before[block["name"]].get(name, {}).get("wrong", 0)
            if entry["wrong"] > was:
                yield {
                    "block": block["name"], "output": name, "phase": "all",
                    "text": f"{block['name']} {name}: {entry['wrong']} wrong, was {was}",
                }  # fmt: skip


def _end_to_end(report: Report, earlier: Report) -> Iterator[Report]:
    now, was = report["end_to_end"], earlier["end_to_end"]

    def grown(name: str, text: str) -> Report:
        return {"block": END_TO_END, "output": name, "phase": "all", "text": text}

    # Squares of differences of logits, so their growth is squared too.
    kl, kl_was = now["kl_divergence"]["mean"], was["kl_divergence"]["mean"]
    floor = was["dtype_kl_divergence"]["mean"] or 0.0
    if kl_was is not None and (kl is None or kl > ALLOWED_GROWTH**2 * max(kl_was, floor)):
        yield grown("logits", f"mean KL divergence {e(kl)}, was {e(kl_was)}")
    before = {case["case"]: case for case in was["greedy"]}
    for case in now["greedy"]:
        wrong = before[case["case"]]["wrong"]
        if case["wrong"] > wrong:
            yield grown("greedy", f"{case['case']}: {case['wrong']} wrong tokens, was {wrong}")
