"""A report, put together of what was measured now or saved before: with no PyTorch."""

from __future__ import annotations

from glm_trt.validate.measure import Measures
from glm_trt.validate.policy import NO_POLICY, Policy
from glm_trt.validate.report_files import FORMAT, FORMAT_VERSION
from glm_trt.validate.verdict import Report, judge


def assemble(context: Report, measures: Measures, policy: Policy = NO_POLICY) -> Report:
    """The report of what was measured."""
    layers = {name: layer for name, _, layer in context["kinds"] if layer is not None}
    judged = judge(measures, policy, layers)
    report = {"format": FORMAT, "format_version": FORMAT_VERSION, "ok": judged["ok"]}
    report |= {name: value for name, value in context.items() if name != "kinds"}
    return report | {"policy": policy.to_dict(), "baseline": None, "compared": None} | judged
