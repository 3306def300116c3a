"""The verdict on the whole pass: block by block up to the logits, and by the backend's runtime."""

from __future__ import annotations

import numpy as np

from glm_trt.validate.judging.figures import Report, number
from glm_trt.validate.judging.limits import explain, over, propagated_entry
from glm_trt.validate.judging.measure import BlockResult, EndToEnd, Measures
from glm_trt.validate.judging.policy import END_TO_END, NO_POLICY, RUNTIME, Policy, Where
from glm_trt.validate.judging.problem_kinds import ProblemKind
from glm_trt.validate.judging.problems import error_kind, problem_of, shown


def end_to_end_entry(measures: Measures, policy: Policy) -> Report:
    """Logits, greedy tokens and perplexity of the whole pass; logits of tokens after a near tie are
    set aside.
    """
    end, dtype = measures.end_to_end, measures.dtype
    head = measures.results["head"]
    logits = {
        phase: propagated_entry(pair, dtype) for (_, phase), pair in sorted(head.propagated.items())
    }
    problems = _logits_problems(END_TO_END, logits, dtype, policy)
    where = _whole(END_TO_END)
    for name, greedy in end.greedy.items():
        problems += [
            problem_of(policy, where, f"{name}: {_wrong_token(wrong)}", ProblemKind.GREEDY)
            for wrong in greedy["wrong"]
        ]
    values = _summarised(end)
    problems += [
        problem_of(NO_POLICY, where, text, ProblemKind.LIMIT)
        for text in policy.end_to_end_problems(values)
    ]
    return {
        "ok": all(problem["waived"] for problem in problems),
        "problems": problems,
        "logits": logits,
        "tokens_set_aside": head.set_aside.tokens,
        "tokens_set_aside_by": {
            "found": head.set_aside.found,
            "dtype": head.set_aside.rounded,
        },
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


def runtime_entry(result: BlockResult, dtype: str, policy: Policy) -> Report:
    """Logits of the runtime's own passes."""
    logits = {
        phase: propagated_entry(pair, dtype)
        for (_, phase), pair in sorted(result.propagated.items())
    }
    problems = _logits_problems(RUNTIME, logits, dtype, policy)
    problems += [
        problem_of(policy, _whole(RUNTIME), f"{finding.output}: {finding.text}", finding.kind)
        for finding in shown(result.findings)
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
            text, ratio = f"logits, {phase}: {explain(entry)}", over(entry, dtype)
            problems.append(problem_of(policy, _whole(part), text, error_kind(entry), ratio))
    return problems


def _whole(part: str) -> Where:
    """Where a problem of the whole pass is."""
    return Where(part, part, None, "logits")
