"""What is wrong in one place, as a report has it: with the rule that waives it."""

from __future__ import annotations

import math

from glm_trt.validate.judging.figures import Report
from glm_trt.validate.judging.policy import Policy, Where
from glm_trt.validate.judging.problem_kinds import Finding, ProblemKind

PROBLEMS_SHOWN = 3


def problem_of(
    policy: Policy, where: Where, text: str, kind: ProblemKind, ratio: float = math.inf
) -> Report:
    """A problem, and the rule that waives it where one does."""
    rule = policy.waived(where, kind, ratio)
    return {"output": where.output, "problem": kind, "text": text,
            "waived": None if rule is None else rule.reason,
            "rule": None if rule is None else rule.number}  # fmt: skip


def error_kind(entry: Report) -> ProblemKind:
    """What an entry that is not ok is called."""
    return ProblemKind.NOT_FINITE if entry["not_finite"] else ProblemKind.ERROR


def shown(findings: list[Finding]) -> list[Finding]:
    """The first few of each output and kind: those of one kind are waived together."""
    shown: dict[tuple[str, ProblemKind], list[Finding]] = {}
    for finding in findings:
        shown.setdefault((finding.output, finding.kind), []).append(finding)
    return [finding for alike in shown.values() for finding in alike[:PROBLEMS_SHOWN]]
