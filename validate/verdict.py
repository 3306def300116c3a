"""From what was measured to a verdict: the report as data, whose JSON Schema is
`report.schema.json`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from glm_trt.validate.choices import most_near_ties
from glm_trt.validate.compare import ULP_EDGES, Choices
from glm_trt.validate.measure import BlockResult, EndToEnd, Measures, Pair, Pairs
from glm_trt.validate.policy import END_TO_END, NO_POLICY, RUNTIME, Policy, Where
from glm_trt.validate.problem_kinds import Finding, ProblemKind
from glm_trt.validate.systematic import BIAS, Judged, judged

# The backend's error may be this much larger than what its dtype costs the eager model. In half
# precision, products are summed in float32 and the rounding of results is what costs: the same
# everywhere. In float32 the order of summation is what costs, and each library has its own:
# torch and onnxruntime, both correct, differ by factors of 0.9 to 1.4.
ALLOWED_RATIO = {"float64": 2.0, "float32": 2.0, "float16": 1.1, "bfloat16": 1.1}
# Both errors are measured on as many rows as there are, and either may be off by chance: so many
# standard errors of the yardstick are allowed on top, up to the ratio below. They vanish as rows
# get more; of the backend's own scatter nothing is allowed.
STANDARD_ERRORS = 3.0
# The same for the row that is worst in either: extremes differ more than sums do.
ALLOWED_ROW_RATIO = 4.0
# And behind several blocks: a token on which these are ill-conditioned has the largest error of all
# in each, which is there one draw of a wide distribution.
PROPAGATED_ROW_RATIO = 16.0
# One rounding (relative): less cannot be asked of an output that eager happens to give exactly.
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
OFFENDERS = 20
PROBLEMS_SHOWN = 3

Report = dict[str, Any]


def judge(
    measures: Measures, policy: Policy = NO_POLICY, layers: dict[str, int] | None = None
) -> Report:
    """The parts of a report that come from measures: `ok`, `end_to_end`, `runtime`, `blocks`,
    `offenders`.

    Parameters
    ----------
    layers : block name → its layer, for the policy.
    """
    layers = layers or {}
    blocks = [
        _block_entry(result, measures.dtype, policy, layers.get(result.name))
        for result in measures.results.values()
        if result.name != RUNTIME
    ]
    end = _end_to_end_entry(measures, policy)
    runtime = measures.results.get(RUNTIME)
    parts: Report = {
        "end_to_end": end,
        "runtime": None if runtime is None else _runtime_entry(runtime, measures.dtype, policy),
        "blocks": blocks,
        "offenders": _offenders(blocks),
    }
    verdicts = [*blocks, end, *([parts["runtime"]] if parts["runtime"] else [])]
    return {"ok": all(part["ok"] for part in verdicts)} | parts


def judge_block(measures: Measures, name: str) -> list[str]:
    """What is wrong with one block, or with the whole pass behind the head; empty if nothing is."""
    result, dtype = measures.results[name], measures.dtype
    if name == RUNTIME:
        entry = _runtime_entry(result, dtype, NO_POLICY)
    else:
        entry = _block_entry(result, dtype, NO_POLICY, None)
        if name == "head" and entry["ok"] and result.propagated:
            entry = _end_to_end_entry(measures, NO_POLICY)
    return [problem["text"] for problem in entry["problems"]]


def block_severity(measures: Measures, name: str) -> float:
    """How many times what is allowed of a block's own outputs the worst of them differs."""
    result, dtype = measures.results[name], measures.dtype
    if result.findings or any(choices.wrong for choices in result.choices.values()):
        return math.inf
    entries = (pair_entry(pair, dtype) for pair in result.isolated.values())
    worst = max(_over(entry, dtype) for entry in entries) / ALLOWED_RATIO[dtype]
    slopes = (judged(of, dtype, ALLOWED_RATIO[dtype]) for of in result.systematic.values())
    return max([worst, *(each.share for of in slopes for each in of)])


def _block_entry(result: BlockResult, dtype: str, policy: Policy, layer: int | None) -> Report:
    """One block's part of the report, with `ok` and, where it is not, `problems`."""
    problems: list[Report] = []

    def at(output: str) -> Where:
        return Where(result.name, result.kind, layer, output)

    def note(output: str, text: str, kind: ProblemKind, ratio: float = math.inf) -> None:
        problems.append(_problem(policy, at(output), f"{output}{text}", kind, ratio))

    isolated: Report = {}
    for (name, phase), pair in sorted(result.isolated.items()):
        rule = policy.tightened(at(name))
        entry = pair_entry(pair, dtype, None if rule is None else rule.ratio)
        isolated.setdefault(name, {})[phase] = entry
        if not entry["ok"]:
            note(name, f", {phase}: {explain(entry)}", _error_kind(entry), _over(entry, dtype))
    systematic: Report = {}
    for (name, phase), of in sorted(result.systematic.items()):
        slopes = judged(of, dtype, ALLOWED_RATIO[dtype])
        systematic.setdefault(name, {})[phase] = {each.name: _slope_entry(each) for each in slopes}
        if beyond := [each for each in slopes if each.share > 1]:
            worst = max(beyond, key=lambda each: each.share)
            text, ratio = explain_slope(worst), ALLOWED_RATIO[dtype] * worst.share
            note(name, f", {phase}: {text}", ProblemKind.SYSTEMATIC, ratio)
    for name, choices in result.choices.items():
        if wrong := choices.wrong - choices.impossible:
            note(name, f": {wrong} wrong; first: {choices.first_wrong}", ProblemKind.CHOICES)
        most = most_near_ties(choices.dtype_near_ties, ALLOWED_RATIO[dtype])
        if choices.near_ties > most:
            text = (f": {choices.near_ties} near ties, allowed {most}: the dtype has "
                    f"{choices.dtype_near_ties}")  # fmt: skip
            ratio = ALLOWED_RATIO[dtype] * choices.near_ties / most
            note(name, text, ProblemKind.NEAR_TIES, ratio)
        if choices.impossible:
            text = f": {choices.impossible} impossible; first: {choices.first_impossible}"
            note(name, text, ProblemKind.IMPOSSIBLE)
    for finding in _shown(result.findings):
        note(finding.output, f": {finding.text}", finding.kind)
    return {
        "name": result.name,
        "kind": result.kind,
        "layer": layer,
        "ok": all(problem["waived"] for problem in problems),
        "problems": problems,
        "isolated": isolated,
        "systematic": systematic,
        "choices": {name: _choices_entry(choices) for name, choices in result.choices.items()},
        "propagated": _pairs_entry(result.propagated, dtype),
        "tokens_set_aside": result.set_aside,
    }


def _slope_entry(of: Judged) -> Report:
    return {"found": of.slope.found, "dtype": of.slope.rounded, "lowest": of.lowest,
            "highest": of.highest, "ok": of.share <= 1}  # fmt: skip


def explain_slope(of: Judged) -> str:
    """What is wrong with a gain or a bias beyond its limits."""
    what = of.name if of.name.startswith(BIAS) else f"gain of {of.name}"
    return (
        f"{what} {of.slope.found:+.1e}, allowed {of.lowest:+.1e}…{of.highest:+.1e}; that of the "
        f"dtype is {of.slope.rounded:+.1e}"
    )


def _pairs_entry(pairs: Pairs, dtype: str) -> Report:
    entries: Report = {}
    for (name, phase), pair in sorted(pairs.items()):
        entries.setdefault(name, {})[phase] = _propagated_entry(pair, dtype)
    return entries


def _propagated_entry(pair: Pair, dtype: str) -> Report:
    return pair_entry(pair, dtype, row_ratio=PROPAGATED_ROW_RATIO)


def pair_entry(
    pair: Pair,
    dtype: str,
    tightened: float | None = None,
    tolerance: float = 0.0,
    row_ratio: float = ALLOWED_ROW_RATIO,
    standard_errors: float = STANDARD_ERRORS,
) -> Report:
    """Errors of the backend and of its dtype, their ratio, the limits and the worst element.

    `error` and `dtype_error` are relative L2 differences over all elements; the `row` ones those of
    the worst row. `tightened` replaces the allowed ratio; `tolerance` is allowed in any case, as is
    one rounding of the output's own dtype, which is wider than `dtype` where a state is.
    """
    error, dtype_error = pair.found.relative, pair.rounded.relative
    allowed = ALLOWED_RATIO[dtype] if tightened is None else tightened
    least = max(UNIT_ROUNDOFF[pair.found.dtype], tolerance)
    # Of few rows, what the dtype costs is known only roughly.
    by_chance = 1 + standard_errors * pair.rounded.uncertainty
    limit = max(min(allowed * by_chance, ALLOWED_ROW_RATIO) * dtype_error, least)
    row_limit = row_ratio * max(pair.rounded.worst_row, least)
    return {
        "error": number(error),
        "dtype_error": number(dtype_error),
        "ratio": number(error / dtype_error) if dtype_error else None,
        "limit": number(limit),
        "row_error": number(pair.found.worst_row),
        "row_limit": number(row_limit),
        "ok": error <= limit and pair.found.worst_row <= row_limit,
        "elements": pair.found.elements,
        "not_finite": pair.found.non_finite,
        "worst": {
            name: number(value) if isinstance(value, float) else value
            for name, value in pair.found.worst.items()
        },
        "ulps": {"found": pair.found.ulps.tolist(), "dtype": pair.rounded.ulps.tolist()},
    }


def _over(entry: Report, dtype: str) -> float:
    """Which ratio would have allowed the entry."""
    share = limit_share(entry)
    return math.inf if share is None else ALLOWED_RATIO[dtype] * share


def _choices_entry(choices: Choices) -> Report:
    equal = choices.rows - choices.near_ties - choices.wrong
    return {
        "rows": choices.rows, "equal": equal, "near_ties": choices.near_ties,
        "dtype_near_ties": choices.dtype_near_ties,
        "wrong": choices.wrong, "close": choices.close,
        "smallest_margin": number(choices.smallest_margin),
        "largest_lost": number(choices.largest_lost),
    }  # fmt: skip


def explain(entry: Report) -> str:
    """What is wrong with an entry that is not ok."""
    worst = entry["worst"]
    if entry["error"] is None or entry["error"] > entry["limit"]:
        text = f"error {e(entry['error'])}, allowed {e(entry['limit'])}"
    else:
        text = f"error {e(entry['row_error'])} in one row, allowed {e(entry['row_limit'])}"
    if worst:
        text += (
            f"; worst in {worst['place']} at {worst['coordinates']}: expected "
            f"{g(worst['expected'])}, found {g(worst['found'])}"
        )
    return text


def _end_to_end_entry(measures: Measures, policy: Policy) -> Report:
    """Logits, greedy tokens and perplexity of the whole pass; logits of tokens after a near tie are
    set aside.
    """
    end, dtype = measures.end_to_end, measures.dtype
    head = measures.results["head"]
    logits = {
        phase: _propagated_entry(pair, dtype)
        for (_, phase), pair in sorted(head.propagated.items())
    }
    problems = _logits_problems(END_TO_END, logits, dtype, policy)
    where = _whole(END_TO_END)
    for name, greedy in end.greedy.items():
        problems += [
            _problem(policy, where, f"{name}: {_wrong_token(wrong)}", ProblemKind.GREEDY)
            for wrong in greedy["wrong"]
        ]
    values = _summarised(end)
    problems += [
        _problem(NO_POLICY, where, text, ProblemKind.LIMIT)
        for text in policy.end_to_end_problems(values)
    ]
    return {
        "ok": all(problem["waived"] for problem in problems),
        "problems": problems,
        "logits": logits,
        "tokens_set_aside": head.set_aside,
        **values,
        "greedy": [
            {"case": name, **greedy, "wrong": len(greedy["wrong"])}
            for name, greedy in end.greedy.items()
        ],
    }


def _summarised(end: EndToEnd) -> Report:
    def summary(values: list[float]) -> Report:
        return {"mean": number(float(np.mean(values))), "max": number(float(np.max(values)))}

    text = None
    if end.text is not None:
        text = {
            "tokens": int(end.text["tokens"]), "exact": number(end.text["exact"]),
            "dtype": number(end.text["rounded"]), "found": number(end.text["found"]),
        }  # fmt: skip
    return {
        "tokens": end.tokens,
        "kl_divergence": summary(end.divergence),
        "dtype_kl_divergence": summary(end.rounded_divergence),
        "top1": end.top1 / end.tokens,
        "top5": end.top5 / end.tokens,
        "perplexity": text,
    }


def _runtime_entry(result: BlockResult, dtype: str, policy: Policy) -> Report:
    logits = {
        phase: _propagated_entry(pair, dtype)
        for (_, phase), pair in sorted(result.propagated.items())
    }
    problems = _logits_problems(RUNTIME, logits, dtype, policy)
    problems += [
        _problem(policy, _whole(RUNTIME), f"{finding.output}: {finding.text}", finding.kind)
        for finding in _shown(result.findings)
    ]
    ok = all(problem["waived"] for problem in problems)
    return {"ok": ok, "problems": problems, "logits": logits}


def _wrong_token(wrong: Report) -> str:
    return (
        f"token {wrong['token']}: expected {wrong['expected']}, found {wrong['found']}, whose "
        f"logit is {wrong['gap']:.3g} lower"
    )


def _logits_problems(part: str, logits: Report, dtype: str, policy: Policy) -> list[Report]:
    problems = []
    for phase, entry in logits.items():
        if not entry["ok"]:
            text, ratio = f"logits, {phase}: {explain(entry)}", _over(entry, dtype)
            problems.append(_problem(policy, _whole(part), text, _error_kind(entry), ratio))
    return problems


def _whole(part: str) -> Where:
    """Where a problem of the whole pass is."""
    return Where(part, part, None, "logits")


def _problem(
    policy: Policy, where: Where, text: str, kind: ProblemKind, ratio: float = math.inf
) -> Report:
    """A problem, and the rule that waives it where one does."""
    rule = policy.waived(where, kind, ratio)
    return {"output": where.output, "problem": kind, "text": text,
            "waived": None if rule is None else rule.reason,
            "rule": None if rule is None else rule.number}  # fmt: skip


def _error_kind(entry: Report) -> ProblemKind:
    return ProblemKind.NOT_FINITE if entry["not_finite"] else ProblemKind.ERROR


def _shown(findings: list[Finding]) -> list[Finding]:
    """The first few of each output and kind: those of one kind are waived together."""
    shown: dict[tuple[str, ProblemKind], list[Finding]] = {}
    for finding in findings:
        shown.setdefault((finding.output, finding.kind), []).append(finding)
    return [finding for alike in shown.values() for finding in alike[:PROBLEMS_SHOWN]]


def _offenders(blocks: list[Report]) -> list[Report]:
    """The worst elements of all isolated outputs, those furthest beyond (or closest to) their
    limit first.
    """
    rows = [
        {
            "block": block["name"], "kind": block["kind"], "output": name, "phase": phase,
            "share": limit_share(entry),
            "ok": entry["ok"], **entry["worst"],
        }
        for block in blocks
        for name, phases in block["isolated"].items()
        for phase, entry in phases.items()
        if entry["worst"]
    ]  # fmt: skip
    rows.sort(key=lambda row: -math.inf if row["share"] is None else -row["share"])
    return rows[:OFFENDERS]


def limit_share(entry: Report) -> float | None:
    """The larger of an entry's two errors, of all elements and of the worst row, as a part of what
    is allowed; None where it is not finite.
    """
    pairs = ((entry["error"], entry["limit"]), (entry["row_error"], entry["row_limit"]))
    if any(error is None or limit is None for error, limit in pairs):
        return None
    return max(float(error / limit) for error, limit in pairs)


def ulp_labels() -> list[str]:
    """Names of the classes in which differences in units in the last place are counted."""
    return [f"≤ {edge:g}" for edge in ULP_EDGES] + [f"> {ULP_EDGES[-1]:g}"]


def number(value: float) -> float | None:
    """JSON has no infinity: None stands for an error that is not finite."""
    return value if math.isfinite(value) else None


def e(value: float | None) -> str:
    """For people."""
    return "not finite" if value is None else f"{value:.1e}"


def g(value: float | None) -> str:
    """For people: a value of a tensor, in as many digits as float32 has."""
    return "not finite" if value is None else f"{value:.9g}"


def tolerances(dtype: str) -> Report:
    """What is allowed of a backend in `dtype`."""
    return {
        "ratio": ALLOWED_RATIO[dtype],
        "standard_errors": STANDARD_ERRORS,
        "row_ratio": ALLOWED_ROW_RATIO,
        "propagated_row_ratio": PROPAGATED_ROW_RATIO,
        "unit_roundoff": UNIT_ROUNDOFF[dtype],
        "ulp_classes": ulp_labels(),
    }
