"""From what was measured to a verdict, as JSON and as Markdown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from glm_trt.validate.compare import Choices
from glm_trt.validate.walk import BlockResult, Flow, Pair

# The backend's error may be this much larger than what its dtype costs the eager model. In half
# precision, products are summed in float32 and the rounding of results is what costs: the same
# everywhere. In float32 the order of summation is what costs, and each library has its own:
# torch and onnxruntime, both correct, differ by factors of 0.9 to 1.4.
ALLOWED_RATIO = {"float32": 2.0, "float16": 1.1, "bfloat16": 1.1}
# One rounding (relative): less cannot be asked of an output that eager happens to give exactly.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

Report = dict[str, Any]


def block_entry(result: BlockResult, dtype: str) -> Report:
    """One block's part of the report, with `ok` and, where it is not, `problems`."""
    problems = []
    isolated = {}
    for name, pair in result.isolated.items():
        isolated[name] = entry = pair_entry(pair, dtype)
        if not entry["ok"]:
            problems.append(_explain(name, entry))
    for name, choices in result.choices.items():
        if choices.wrong:
            problems.append(f"{name}: {choices.wrong} wrong; first: {choices.first_wrong}")
    problems += [f"overwrites what it should keep: {place}" for place in result.overwritten[:3]]
    return {
        "name": result.block.name,
        "kind": result.block.kind,
        "ok": not problems,
        "problems": problems,
        "isolated": isolated,
        "choices": {name: _choices_entry(choices) for name, choices in result.choices.items()},
        "propagated": pair_entry(result.propagated, dtype) | {"tokens_set_aside": result.set_aside},
    }


def pair_entry(pair: Pair, dtype: str) -> Report:
    """Errors of the backend and of its dtype, their ratio, the limit and the worst element."""
    error, dtype_error = pair.found.relative, pair.rounded.relative
    limit = max(ALLOWED_RATIO[dtype] * dtype_error, UNIT_ROUNDOFF[dtype])
    return {
        "error": _number(error),
        "dtype_error": _number(dtype_error),
        "ratio": _number(error / dtype_error) if dtype_error else None,
        "limit": limit,
        "ok": error <= limit,
        "worst": {
            name: _number(value) if isinstance(value, float) else value
            for name, value in pair.found.worst.items()
        },
    }


def _choices_entry(choices: Choices) -> Report:
    equal = choices.rows - choices.near_ties - choices.wrong
    return {"rows": choices.rows, "equal": equal, "near_ties": choices.near_ties,
            "wrong": choices.wrong}  # fmt: skip


def _explain(name: str, entry: Report) -> str:
    worst = entry["worst"]
    text = f"{name}: error {_e(entry['error'])}, allowed {_e(entry['limit'])}"
    if worst:
        text += (
            f"; worst in {worst['place']} at {worst['coordinates']}: expected "
            f"{_g(worst['expected'])}, found {_g(worst['found'])}"
        )
    return text


def end_to_end_entry(flows: list[Flow], head: BlockResult, dtype: str) -> Report:
    """Logits and greedy tokens of the whole pass; tokens after a near tie are set aside."""
    logits = pair_entry(head.propagated, dtype)
    divergence: list[float] = []
    rows = top1 = 0
    tokens = {"compared": 0, "equal": 0, "near_ties": 0, "wrong": 0}
    noise = head.propagated.rounded.worst.get("difference", 0.0)
    problems = [] if logits["ok"] else [_explain("logits", logits)]
    for flow in flows:
        exact, found = (
            np.concatenate([piece["logits"] for piece in flow.values[chain]], axis=1).astype(float)
            for chain in ("exact", "found")
        )
        divergence += _divergence(exact, found).ravel().tolist()
        rows += found.shape[0] * found.shape[1]
        top1 += int((exact.argmax(-1) == found.argmax(-1)).sum())
        if flow.case.continued:
            problems += _greedy(flow, exact, noise, tokens)
    return {
        "ok": not problems,
        "problems": problems,
        "logits": logits,
        "tokens_set_aside": head.set_aside,
        "kl_divergence": {
            "mean": _number(float(np.mean(divergence))), "max": _number(float(np.max(divergence)))
        },
        "top1": {"tokens": rows, "equal": top1},
        "greedy_tokens": tokens,
    }  # fmt: skip


def _greedy(flow: Flow, exact: Any, noise: float, tokens: dict[str, int]) -> list[str]:
    """Hold the backend's continuation against the exact model's choice after the same prefix."""
    first = flow.case.prefill - 1
    problems = []
    for position in range(first, flow.case.ids.shape[1] - 1):
        chosen, row = int(flow.case.ids[0, position + 1]), exact[0, position]
        best = int(row.argmax())
        tokens["compared"] += 1
        if chosen == best:
            tokens["equal"] += 1
        elif flow.parted[0, position] or row[best] - row[chosen] <= 2 * noise:
            tokens["near_ties"] += 1
        else:
            tokens["wrong"] += 1
            problems.append(
                f"{flow.case.name}: token {position + 1}: expected {best}, found {chosen}, whose "
                f"logit is {row[best] - row[chosen]:.3g} lower"
            )
    return problems


def _divergence(exact: Any, found: Any) -> Any:
    """KL(exact ‖ found) of each token, in nats."""
    with np.errstate(invalid="ignore"):
        p, q = (x - x.max(-1, keepdims=True) for x in (exact, found))
        p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
        return np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)


def _g(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


def _number(value: float) -> float | None:
    """JSON has no infinity: None stands for an error that is not finite."""
    return value if math.isfinite(value) else None


def markdown(report: Report) -> str:
    """The report for people: verdict, end to end, block by block."""
    end = report["end_to_end"]
    tokens, divergence = end["greedy_tokens"], end["kl_divergence"]
    lines = [
        f"# {'Passed' if report['ok'] else 'FAILED'}: {report['bundle']} on {report['backend']}",
        "",
        f"Truth: the eager model in float64 on {report['reference']}. *Error* is the backend's "
        f"relative L2 difference from it, *dtype* that of the eager model in {report['dtype']}; "
        f"at most {ALLOWED_RATIO[report['dtype']]} times as much is allowed.",
        "",
        *(f"- **{block['name']}**: {problem}" for block in report["blocks"]
          for problem in block["problems"]),
        *(f"- **end to end**: {problem}" for problem in end["problems"]),
        "",
        "| end to end | |",
        "|---|---|",
        f"| logits: error, dtype | {_e(end['logits']['error'])}, "
        f"{_e(end['logits']['dtype_error'])} |",
        f"| KL divergence: mean, max (nats) | {_e(divergence['mean'])}, {_e(divergence['max'])} |",
        f"| most likely token equal | {end['top1']['equal']} of {end['top1']['tokens']} |",
        f"| greedy tokens equal | {tokens['equal']} of {tokens['compared']}, "
        f"{tokens['near_ties']} near ties |",
        f"| tokens set aside after a near tie | {end['tokens_set_aside']} |",
        "",
        "| block | kind | output | error | dtype | ratio | choices: equal, near ties, wrong "
        "| propagated: error, dtype |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for block in report["blocks"]:
        lines += _block_rows(block)
    lines += ["", "| case | ids | prefill |", "|---|---|---|"]
    for case in report["cases"]:
        lines.append(f"| `{case['name']}` | {case['shape'][0]} × {case['shape'][1]} "
                     f"| {case['prefill']} |")  # fmt: skip
    lines += ["", f"glm-trt {report['versions']['glm-trt']}, torch {report['versions']['torch']}, "
              f"{report['backend']} {report['versions'][report['backend']]}, "
              f"{report['seconds']:.1f} s", ""]  # fmt: skip
    return "\n".join(lines)


def summary(report: Report) -> str:
    """The verdict in a few lines."""
    end = report["end_to_end"]
    tokens, top1, logits = end["greedy_tokens"], end["top1"], end["logits"]
    problems = [
        f"  {part['name']}: {problem}"
        for part in [*report["blocks"], {"name": "end to end", **end}]
        for problem in part["problems"]
    ]
    if len(problems) > 10:
        problems[10:] = [f"  … and {len(problems) - 10} more"]
    return "\n".join([
        f"{report['bundle']} on {report['backend']}: {'passed' if report['ok'] else 'FAILED'}",
        *problems,
        f"  logits        error {_e(logits['error'])}; {report['dtype']} alone costs "
        f"{_e(logits['dtype_error'])}",
        f"  likeliest     {top1['equal']} of {top1['tokens']} tokens equal",
        f"  greedy        {tokens['equal']} of {tokens['compared']} tokens equal, "
        f"{tokens['near_ties']} near ties",
    ])  # fmt: skip


def _block_rows(block: Report) -> list[str]:
    rows = []
    choices = "; ".join(
        f"{name.split('_')[0]} {c['equal']}, {c['near_ties']}, {c['wrong']}"
        for name, c in block["choices"].items()
    )
    propagated = block["propagated"]
    both = f"{_e(propagated['error'])}, {_e(propagated['dtype_error'])}"
    for i, (name, entry) in enumerate(block["isolated"].items()):
        first = i == 0
        ratio = "–" if entry["ratio"] is None else f"{entry['ratio']:.2f}"
        mark = "" if entry["ok"] else " **!**"
        rows.append(
            f"| {block['name'] if first else ''} | {block['kind'] if first else ''} | {name} "
            f"| {_e(entry['error'])}{mark} | {_e(entry['dtype_error'])} | {ratio} "
            f"| {choices if first else ''} | {both if first else ''} |"
        )
    return rows


def _e(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
