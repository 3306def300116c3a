"""Holding a report against an earlier one: what is within tolerance may have become worse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glm_trt.validate.judging.figures import Report, e
from glm_trt.validate.judging.limits import describe_slope
from glm_trt.validate.judging.near_ties import ISOLATED, PROPAGATED
from glm_trt.validate.judging.policy import END_TO_END, RUNTIME
from glm_trt.validate.judging.systematic import CHANNEL
from glm_trt.validate.reporting.report_files import ReportError, read_report

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
# A gain or a bias may take so much more of what the earlier report allowed: it is a mean of
# roundings, which are other ones where sums are in another order. That moves a share by up to 0.11:
# the 76 of a small model in onnxruntime, as they are and rewritten, and in PyTorch on one core.
ALLOWED_SHARE_GROWTH = 0.5
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
    regressions = [*_of_outputs(report, earlier, roundoff), *_of_slopes(report, earlier),
                   *_of_choices(report, earlier), *_of_near_ties(report, earlier),
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


def _of_slopes(report: Report, earlier: Report) -> Iterator[Report]:
    """Where a gain or a bias takes more of what it was allowed, or is not judged now."""
    blocks = {block["name"]: block["systematic"] for block in report["blocks"]}
    for block in earlier["blocks"]:
        for output, phases in block["systematic"].items():
            for phase, slopes in phases.items():
                entries = blocks[block["name"]].get(output, {}).get(phase)
                if entries is None:
                    continue  # as is the output, which is said already
                by_what = {_kind_of_slope(name): (name, entry) for name, entry in entries.items()}
                for name, was in slopes.items():
                    where = f"{block['name']} {output}, {phase}"
                    now = by_what.get(_kind_of_slope(name))
                    if text := _slope_growth(name, was, now):
                        yield _grown(block["name"], output, f"{where}: {text}", phase)


def _kind_of_slope(name: str) -> str:
    """Of channels the worst is kept, which may be another one each time."""
    return CHANNEL if name.startswith(CHANNEL) else name


def _slope_growth(name: str, was: Report, now: tuple[str, Report] | None) -> str:
    what = describe_slope(name)
    if now is None:
        return f"{what} was judged, is not now"
    name, entry = now
    allowed = entry if name.startswith(CHANNEL) else was
    share, share_was = _share_of(entry["found"], allowed), _share_of(was["found"], was)
    beyond = share > 1 >= share_was
    if not beyond and share <= max(ALLOWED_GROWTH * share_was, share_was + ALLOWED_SHARE_GROWTH):
        return ""
    return (
        f"{describe_slope(name)} {entry['found']:+.1e}, {100 * share:.0f} % of what was allowed, "
        f"was {was['found']:+.1e}, {100 * share_was:.0f} %"
    )


def _share_of(slope: float, allowed: Report) -> float:
    return float(slope / (allowed["highest"] if slope > 0 else allowed["lowest"]))


def _of_choices(report: Report, earlier: Report) -> Iterator[Report]:
    now = {block["name"]: block["choices"] for block in report["blocks"]}
    for block in earlier["blocks"]:
        for name, was in block["choices"].items():
            where, entry = f"{block['name']} {name}", now[block["name"]].get(name)
            if entry is None:
                yield _grown(block["name"], name, f"{where}: was compared, is missing now")
            elif entry["wrong"] > was["wrong"]:
                text = f"{where}: {entry['wrong']} wrong, was {was['wrong']}"
                yield _grown(block["name"], name, text)


def _of_near_ties(report: Report, earlier: Report) -> Iterator[Report]:
    now = dict(_near_ties(report))
    sums: dict[tuple[str, str], list[int]] = {}
    for (block, name, what), was in _near_ties(earlier):
        count = now.get((block, name, what))
        if count is None:
            continue  # as is the choice, which is said already
        if _more(count, was):
            text = f"{block} {name}: {count} {what}, was {was}; more than by chance"
            yield _grown(block, name, text)
        of = sums.setdefault((name, what), [0, 0])
        sums[name, what] = [of[0] + count, of[1] + was]
    # A few more in every block are many in all.
    for (name, what), (count, was) in sums.items():
        if _more(count, was):
            text = f"all blocks, {name}: {count} {what}, was {was}; more than by chance"
            yield _grown("all blocks", name, text)


def _near_ties(report: Report) -> Iterator[tuple[tuple[str, str, str], int]]:
    """By block, output and what they are."""
    for block in report["blocks"]:
        for name, entry in block["choices"].items():
            yield (block["name"], name, ISOLATED), entry["near_ties"]
        for name, entry in block["parted"].items():
            yield (block["name"], name, PROPAGATED), entry["found"]


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
    aside, aside_was = (of["tokens_set_aside_by"]["found"] for of in (now, was))
    if aside > ALLOWED_GROWTH * aside_was + longest:
        text = f"{aside} tokens set aside after the backend's near ties, was {aside_was}"
        yield _grown(END_TO_END, "logits", text)


def _of_runtime(report: Report, earlier: Report) -> Iterator[Report]:
    """A backend whose runtime was compared and is not now."""
    same = report["backend"]["name"] == earlier["backend"]["name"]
    if same and earlier["runtime"] and not report["runtime"]:
        text = f"was compared, is not now: {report['runtime_skipped']}"
        yield _grown(RUNTIME, "logits", f"{RUNTIME}: {text}")
