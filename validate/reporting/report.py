"""A report, put together of what was measured now or saved before: with no PyTorch."""

from __future__ import annotations

from glm_trt.validate.judging.figures import Report
from glm_trt.validate.judging.measure import Measures
from glm_trt.validate.judging.policy import GRAPH, NO_POLICY, Policy, Target
from glm_trt.validate.judging.problem_kinds import Finding, ProblemKind
from glm_trt.validate.judging.verdict import judge
from glm_trt.validate.reporting.report_files import FORMAT, FORMAT_VERSION

# Of a context, what rules may be about in each block; no part of the report.
TARGETS = "targets"


def targets_in(context: Report) -> dict[str, Target]:
    """The targets by block. Raises `KeyError`, `TypeError` or `ValueError` where there are none."""
    return {
        name: Target(kind, layer, tuple(outputs)) for name, kind, layer, outputs in context[TARGETS]
    }


def assemble(context: Report, measures: Measures, policy: Policy = NO_POLICY) -> Report:
    """The report of what was measured."""
    layers = {
        name: target.layer
        for name, target in targets_in(context).items()
        if target.layer is not None
    }
    for kind in context["graphs"]["kinds"]:
        if kind["problem"] is not None:
            text = f"of {kind['kind']} ({', '.join(kind['blocks'])}): {kind['problem']}"
            finding = Finding(GRAPH, text, ProblemKind.GRAPHS)
            measures.results[kind["blocks"][0]].findings.append(finding)
    if (problem := context["transformers"]["problem"]) is not None:
        measures.results["head"].findings.append(Finding("logits", problem, ProblemKind.REFERENCE))
    judged = judge(measures, policy, layers)
    report = {"format": FORMAT, "format_version": FORMAT_VERSION, "ok": judged["ok"]}
    report |= {name: value for name, value in context.items() if name != TARGETS}
    return report | {"policy": policy.to_dict(judged), "baseline": None, "compared": None} | judged
