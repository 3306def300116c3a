"""From what was measured to a verdict: the report as data, whose JSON Schema is
`report.schema.json`.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import takewhile

from glm_trt.validate.judging.figures import Report
from glm_trt.validate.judging.limits import (
    ALLOWED_RATIO,
    choices_entry,
    explain,
    explain_slope,
    limit_share,
    over,
    pair_entry,
    pairs_entry,
    parted_entries,
    slope_entry,
)
from glm_trt.validate.judging.measure import BlockResult, Measures
from glm_trt.validate.judging.near_ties import NearTies
from glm_trt.validate.judging.policy import NO_POLICY, RUNTIME, Policy, Where
from glm_trt.validate.judging.problem_kinds import ProblemKind
from glm_trt.validate.judging.problems import error_kind, problem_of, shown
from glm_trt.validate.judging.systematic import judged
from glm_trt.validate.judging.whole_pass import end_to_end_entry, runtime_entry

OFFENDERS = 20


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
    near_ties = NearTies(measures.dtype)
    blocks = [
        _block_entry(result, measures.dtype, policy, layers.get(result.name), near_ties)
        for result in measures.results.values()
        if result.name != RUNTIME
    ]
    end = end_to_end_entry(measures, policy)
    runtime = measures.results.get(RUNTIME)
    parts: Report = {
        "end_to_end": end,
        "runtime": None if runtime is None else runtime_entry(runtime, measures.dtype, policy),
        "blocks": blocks,
        "offenders": _offenders(blocks),
    }
    verdicts = [*blocks, end, *([parts["runtime"]] if parts["runtime"] else [])]
    return {"ok": all(part["ok"] for part in verdicts)} | parts


def judge_block(measures: Measures, name: str) -> list[str]:
    """What is wrong with one block, or with the whole pass behind the head; empty if nothing is."""
    result, dtype = measures.results[name], measures.dtype
    if name == RUNTIME:
        entry = runtime_entry(result, dtype, NO_POLICY)
    else:
        near_ties = NearTies(dtype)
        for earlier in takewhile(lambda x: x.name != name, measures.results.values()):
            deque(near_ties.add(earlier), 0)
        entry = _block_entry(result, dtype, NO_POLICY, None, near_ties)
        if name == "head" and entry["ok"] and result.propagated:
            entry = end_to_end_entry(measures, NO_POLICY)
    return [problem["text"] for problem in entry["problems"]]


def block_severity(measures: Measures, name: str) -> float:
    """How many times what is allowed of a block's own outputs the worst of them differs."""
    result, dtype = measures.results[name], measures.dtype
    if result.findings or any(choices.wrong for choices in result.choices.values()):
        return math.inf
    entries = (pair_entry(pair, dtype) for pair in result.isolated.values())
    worst = max(over(entry, dtype) for entry in entries) / ALLOWED_RATIO[dtype]
    slopes = (judged(of, dtype, ALLOWED_RATIO[dtype]) for of in result.systematic.values())
    return max([worst, *(each.share for of in slopes for each in of)])


def _block_entry(
    result: BlockResult, dtype: str, policy: Policy, layer: int | None, near_ties: NearTies
) -> Report:
    """One block's part of the report, with `ok` and, where it is not, `problems`; `near_ties` has
    seen the blocks before.
    """
    problems: list[Report] = []

    def at(output: str) -> Where:
        return Where(result.name, result.kind, layer, output)

    def note(output: str, text: str, kind: ProblemKind, ratio: float = math.inf) -> None:
        problems.append(problem_of(policy, at(output), f"{output}{text}", kind, ratio))

    isolated: Report = {}
    for (name, phase), pair in sorted(result.isolated.items()):
        rule = policy.tightened(at(name))
        entry = pair_entry(pair, dtype, None if rule is None else rule.ratio)
        isolated.setdefault(name, {})[phase] = entry
        if not entry["ok"]:
            note(name, f", {phase}: {explain(entry)}", error_kind(entry), over(entry, dtype))
    systematic: Report = {}
    for (name, phase), of in sorted(result.systematic.items()):
        slopes = judged(of, dtype, ALLOWED_RATIO[dtype])
        systematic.setdefault(name, {})[phase] = {each.name: slope_entry(each) for each in slopes}
        if beyond := [each for each in slopes if each.share > 1]:
            worst = max(beyond, key=lambda each: each.share)
            text, ratio = explain_slope(worst), ALLOWED_RATIO[dtype] * worst.share
            note(name, f", {phase}: {text}", ProblemKind.SYSTEMATIC, ratio)
    for name, choices in result.choices.items():
        if wrong := choices.wrong - choices.impossible:
            note(name, f": {wrong} wrong; first: {choices.first_wrong}", ProblemKind.CHOICES)
        if choices.impossible:
            text = f": {choices.impossible} impossible; first: {choices.first_impossible}"
            note(name, text, ProblemKind.IMPOSSIBLE)
    for excess in near_ties.add(result):
        note(excess.output, f": {excess.text}", ProblemKind.NEAR_TIES, excess.ratio)
    for finding in shown(result.findings):
        note(finding.output, f": {finding.text}", finding.kind)
    if problems:
        near_ties.faulty()
    return {
        "name": result.name,
        "kind": result.kind,
        "layer": layer,
        "ok": all(problem["waived"] for problem in problems),
        "problems": problems,
        "isolated": isolated,
        "systematic": systematic,
        "choices": {name: choices_entry(choices) for name, choices in result.choices.items()},
        "propagated": pairs_entry(result.propagated, dtype),
        **parted_entries(result, dtype),
    }


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
