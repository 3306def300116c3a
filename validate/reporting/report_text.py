"""A report for people: a few lines for a terminal, Markdown for a pull request."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from glm_trt.validate.judging.figures import Report, e, g
from glm_trt.validate.judging.limits import limit_share
from glm_trt.validate.judging.policy import END_TO_END, RUNTIME
from glm_trt.validate.judging.problem_kinds import ProblemKind
from glm_trt.validate.reporting.report_slopes import part, slopes_line, worst_of_kinds

PROBLEMS_SHOWN = 10
OFFENDERS_SHOWN = 8
# Columns of text beside names, however narrow a terminal is.
LEAST_TEXT = 20
_COUNTED = ("rows", "equal", "near_ties", "dtype_near_ties", "wrong")
CHOICE_NAMES = {"expert_indices": "experts", "topk_indices": "positions"}


def title(report: Report) -> str:
    """The verdict in one line, without the bundle's directory."""
    backend = report["backend"]
    return f"{'Passed' if report['ok'] else 'FAILED'}: {backend['name']} in {backend['dtype']}"


def problems(report: Report, *, waived: bool = False) -> list[tuple[str, str]]:
    """Where and what: all problems of a report, with what is waived and why if `waived`."""
    of_parts = [(part["name"], problem) for part in parts(report) for problem in part["problems"]]
    # What is accepted comes last: where few are shown, they are of those that fail.
    of_parts.sort(key=lambda entry: bool(entry[1]["waived"]))
    found = [
        (name, problem["text"] + _named(problem["problem"]) + _why(problem["waived"]))
        for name, problem in of_parts
        if waived or not problem["waived"]
    ]
    baseline, compared = report["baseline"], report["compared"]
    if baseline:
        found += [("baseline", regression["text"]) for regression in baseline["regressions"]]
    if compared:
        found += [(f"{compared['directory']}: {x['where']}", x["text"])
                  for x in compared["problems"]]  # fmt: skip
    return found


def parts(report: Report) -> Iterator[Report]:
    """Everything that has a verdict of its own, by `name`."""
    yield from report["blocks"]
    yield {"name": END_TO_END, **report["end_to_end"]}
    if report["runtime"]:
        yield {"name": RUNTIME, **report["runtime"]}


def closest(report: Report) -> Report | None:
    """The isolated output that is furthest beyond its limit, or closest to it."""
    return report["offenders"][0] if report["offenders"] else None


def share(value: float | None) -> str:
    """An error as a part of its limit."""
    if value is None:
        return "not finite"
    return f"{100 * value:.0f} % of its limit" if value < 10 else f"{value:,.0f} × its limit"


def percent(value: float) -> str:
    """Rounded down, so that only all is 100 %."""
    return "100 %" if value == 1 else f"{int(1e4 * value) / 1e2:.2f} %"


def end_to_end_rows(report: Report) -> list[tuple[str, str]]:
    """What was measured of the whole pass, name by name."""
    end, dtype = report["end_to_end"], report["backend"]["dtype"]
    greedy = end["greedy"]
    rows = [
        (f"logits, {phase}", f"error {e(entry['error'])}; {dtype} alone costs "
         f"{e(entry['dtype_error'])}")
        for phase, entry in sorted(end["logits"].items(), reverse=True)
    ]  # fmt: skip
    kl, of_dtype = end["kl_divergence"], end["dtype_kl_divergence"]
    rows.append(("KL divergence", f"mean {e(kl['mean'])}, max {e(kl['max'])} nats; {dtype} alone "
                 f"{e(of_dtype['mean'])}, {e(of_dtype['max'])}"))  # fmt: skip
    rows.append(("likeliest token", f"equal for {percent(end['top1'])} of {end['tokens']:,} tokens;"
                 f" of the five likeliest {percent(end['top5'])}"))  # fmt: skip
    if greedy:
        tokens = sum(case["tokens"] for case in greedy)
        unlike = sum(case["near_ties"] + case["wrong"] for case in greedy)
        rows.append(("greedy tokens", f"{tokens - unlike} of {tokens} equal, "
                     f"{sum(case['near_ties'] for case in greedy)} near ties; equal until token "
                     + ", ".join(str(case["until_divergence"]) for case in greedy)))  # fmt: skip
    if text := end["perplexity"]:
        rows.append(("perplexity", f"{_p(text['found'])} over {text['tokens']} tokens; exactly "
                     f"{_p(text['exact'])}, in {dtype} {_p(text['dtype'])}"))  # fmt: skip
    for name, counts in choices(report).items():
        rows.append((CHOICE_NAMES[name], f"{counts['equal']:,} of {counts['rows']:,} sets equal, "
                     f"{counts['near_ties']} near ties, {counts['wrong']} wrong; {dtype} alone "
                     f"{counts['dtype_near_ties']}"))  # fmt: skip
    by = end["tokens_set_aside_by"]
    rows.append(("set aside", f"{end['tokens_set_aside']:,} of {end['tokens']:,} tokens: "
                 f"{by['found']:,} by its near ties, {by['dtype']:,} by those of {dtype} "
                 "alone"))  # fmt: skip
    rows.append(("transformers", transformers_row(report["transformers"])))
    return rows


def transformers_row(line: Report) -> str:
    """What transformers' own model makes of the prompts, beside the backend and the exact model."""
    if line["skipped"] is not None:
        return f"not asked: {line['skipped']}"
    backend, exact = line["backend"], line["exact"]
    return (
        f"{line['version']} in float32: the same likeliest token for {percent(backend['top1'])} of "
        f"{line['tokens']}, KL divergence median {e(backend['median_kl_divergence'])}, max "
        f"{e(backend['max_kl_divergence'])} nats; the exact model {percent(exact['top1'])}, "
        f"{e(exact['median_kl_divergence'])}, {e(exact['max_kl_divergence'])}"
    )


def choices(report: Report) -> dict[str, dict[str, int]]:
    """What was chosen, over all blocks."""
    counted: dict[str, dict[str, int]] = {}
    for block in report["blocks"]:
        for name, entry in block["choices"].items():
            sums = counted.setdefault(name, dict.fromkeys(_COUNTED, 0))
            for key in sums:
                sums[key] += entry[key]
    return counted


def blocks_line(report: Report) -> str:
    """How many blocks are within tolerance, and which output is closest to leaving it."""
    good = sum(block["ok"] for block in report["blocks"])
    text = f"{good} of {len(report['blocks'])} blocks within tolerance"
    if worst := closest(report):
        which = "closest to leaving it" if worst["ok"] else "furthest beyond it"
        text += (f"; {which}: {worst['block']} {worst['output']}, {worst['phase']}, "
                 f"{share(worst['share'])}")  # fmt: skip
    return text


def summary(report: Report, columns: int | None = None) -> str:
    """The verdict in a few lines, which a terminal of so many columns does not break."""
    backend = report["backend"]
    found = [f"  {where}: {text}" for where, text in problems(report, waived=True)]
    if len(found) > PROBLEMS_SHOWN:
        found[PROBLEMS_SHOWN:] = [f"  … and {len(found) - PROBLEMS_SHOWN} more"]
    rows = [("blocks", blocks_line(report)), *end_to_end_rows(report)]
    if compared := report["compared"]:
        rows.append(("compared with", f"{compared['directory']}: {_compared_line(compared)}"))
    rows += checked_rows(report)
    rows += [("policy", text) for text in unused_rules(report)]
    width = max(len(name) for name, _ in rows)
    lines = [
        f"{report['bundle']['directory']} on {backend['name']} in {backend['dtype']}: "
        f"{'passed' if report['ok'] else 'FAILED'}",
        *(_wrapped(line, 4, columns) for line in found),
        *(_wrapped(f"  {name:<{width}}  {text}", width + 4, columns) for name, text in rows),
    ]  # fmt: skip
    return "\n".join(lines)


def _wrapped(line: str, indent: int, columns: int | None) -> str:
    """Broken between words, but not before a unit; what follows is indented."""
    if columns is None or len(line) <= columns:
        return line
    margin = line[: len(line) - len(line.lstrip())]
    text = re.sub(" (?=[%×])", "\N{NO-BREAK SPACE}", line[len(margin) :])
    lines = textwrap.wrap(
        text, max(columns, indent + LEAST_TEXT), initial_indent=margin,
        subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def checked_rows(report: Report) -> list[tuple[str, str]]:
    """What was looked at beside the blocks' errors and the logits, name by name."""
    return [
        ("runtime", runtime_line(report)),
        ("gains and biases", slopes_line(report)),
        ("far positions", far_line(report)),
        ("weights", weights_line(report)),
        ("graphs", graphs_line(report)),
    ]


def runtime_line(report: Report) -> str:
    """Whether the runtime's own passes give what the blocks do."""
    if report["runtime_skipped"]:
        return f"not run: {report['runtime_skipped']}"
    within = "within tolerance" if report["runtime"]["ok"] else "BEYOND tolerance"
    return f"its own passes, padded and in place: {within}"


def far_line(report: Report) -> str:
    """How far from the last position of the bundle the probes of far positions ended."""
    last = report["bundle"]["max_seq_len"] - 1
    kinds: dict[int, list[str]] = {}
    for reached in report["far"]:
        kinds.setdefault(reached["position"], []).append(reached["kind"])
    if [*kinds] == [last]:
        return f"every kind up to {last:,}, the last"
    text = "; ".join(
        f"{', '.join(of)} up to {at:,}" + (", the last" if at == last else "")
        for at, of in sorted(kinds.items(), reverse=True)
    )
    return text if last in kinds else f"{text}; the last, {last:,}, by none"


def weights_line(report: Report) -> str:
    """How many weights were compared with the checkpoint's, and whether they are those."""
    weights = report["weights"]
    if weights["skipped"] is not None:
        return f"not compared: {weights['skipped']}"
    other = {
        (block["name"], problem["output"])
        for block in report["blocks"]
        for problem in block["problems"]
        if problem["problem"] == "weights"
    }
    text = f"{weights['whole']:,} compared whole"
    if weights["sampled"]:
        text += f", {weights['sampled']:,} by samples"
    return text + (f"; {len(other):,} NOT the checkpoint's" if other else ", equal in every bit")


def graphs_line(report: Report) -> str:
    """Whether the graphs are as this version exports them."""
    graphs = report["graphs"]
    if graphs["skipped"] is not None:
        return f"not compared: {graphs['skipped']}"
    kinds = graphs["kinds"]
    unlike = [kind for kind in kinds if kind["differences"]]
    traced = [kind for kind in kinds if kind["skipped"] is None]
    text = f"{len(traced) - len(unlike)} of {len(kinds)} kinds as this version exports them"
    for kind in unlike:
        count = len(kind["differences"]) + kind["more"]
        values = "the values are the same" if kind["problem"] is None else "OTHER VALUES"
        text += f"; {kind['kind']} in {count}: {kind['differences'][0]['text']}; {values}"
    return text + "".join(f"; {kind['skipped']}" for kind in kinds if kind["skipped"])


def unused_rules(report: Report) -> list[str]:
    """The policy's rules that waived and tightened nothing."""
    rules = report["policy"]["rules"] if report["policy"] else []
    return [
        f"nothing used rule {number} ({rule['reason']})"
        for number, rule in enumerate(rules, 1)
        if not rule["used"]
    ]


def _compared_line(compared: Report) -> str:
    worst = max(
        (row for row in compared["outputs"] if row["difference"] is not None),
        key=lambda row: row["difference"], default=None,
    )  # fmt: skip
    verdict = "passed" if compared["ok"] else "FAILED"
    text = f"{compared['backend']['name']} in {compared['backend']['dtype']}, which {verdict}"
    if worst:
        text += (f"; largest difference {e(worst['difference'])} in {worst['block']} "
                 f"{worst['output']}, {worst['phase']}")  # fmt: skip
    return text


def markdown(report: Report) -> str:
    """The report for a pull request: verdict, problems, end to end, block by block."""
    backend, tolerance = report["backend"], report["tolerance"]
    lines = [
        f"# {title(report)}",
        "",
        f"Bundle `{report['bundle']['directory']}`, {report['created']}. {blocks_line(report)}.",
        "",
        f"Truth: the eager model in float64 on {report['reference']}. *Error* is the backend's "
        f"relative L2 difference from it, *dtype* that of the eager model in {backend['dtype']}; "
        f"at most {tolerance['ratio']} times as much is allowed.",
        "",
    ]
    found = problems(report, waived=True)
    if found:
        lines += ["## Problems", *(f"- **{where}**: {text}" for where, text in found), ""]
    if unused := unused_rules(report):
        lines += [f"Policy `{report['policy']['file']}`: {'; '.join(unused)}.", ""]
    lines += ["| end to end | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in end_to_end_rows(report)]
    lines += [f"| {name} | {_cell(text)} |" for name, text in checked_rows(report)]
    lines += [
        "",
        "| block | kind | output | phase | error | dtype | ratio | of limit "
        "| choices: equal, near ties, wrong |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for block in report["blocks"]:
        lines += _block_rows(block)
    lines += ["", *_slope_table(report)]
    lines += ["", "| worst elements | at | expected | found | of limit |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['block']} {row['output']}, {_cell(row['place'])} | {row['coordinates']} "
        f"| {g(row['expected'])} | {g(row['found'])} | {of_limit(row['share'])} |"
        for row in report["offenders"][:OFFENDERS_SHOWN]
    ]
    lines += ["", "| case | ids | prefill |", "|---|---|---|"]
    lines += [f"| {_cell(_code(case['name']))} | {case['shape'][0]} × {case['shape'][1]} "
              f"| {case['prefill']} |" for case in report["cases"]]  # fmt: skip
    versions = ", ".join(f"{k} {v}" for k, v in report["environment"]["versions"].items())
    lines += ["", f"{versions}; {report['environment']['processor']}; {report['seconds']:.1f} s",
              ""]  # fmt: skip
    return "\n".join(lines)


def _block_rows(block: Report) -> list[str]:
    chosen = "; ".join(
        f"{CHOICE_NAMES[name]} {c['equal']}, {c['near_ties']}, {c['wrong']}"
        for name, c in block["choices"].items()
    )
    rows: list[str] = []
    for name, phases in block["isolated"].items():
        for phase, entry in phases.items():
            first = not rows
            ratio = "–" if entry["ratio"] is None else f"{entry['ratio']:.2f}"
            mark = "" if entry["ok"] else " **!**"
            rows.append(
                f"| {block['name'] if first else ''} | {block['kind'] if first else ''} | {name} "
                f"| {phase} | {e(entry['error'])}{mark} | {e(entry['dtype_error'])} | {ratio} "
                f"| {of_limit(limit_share(entry))} | {chosen if first else ''} |"
            )
    return rows


def _slope_table(report: Report) -> list[str]:
    """Of each kind of block the slope that takes most of its limit."""
    lines = ["| gains and biases | judged | the worst | in | found | dtype | of limit |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for slope in worst_of_kinds(report):
        mark = "" if slope.ok else " **!**"
        lines.append(
            f"| {slope.kind} | {slope.counted} | {slope.of} | {slope.place} "
            f"| {slope.found:+.1e}{mark} | {slope.dtype:+.1e} | {part(slope.share)} |"
        )
    return lines


def of_limit(value: float | None) -> str:
    """How much of its limit an error takes, where a table says so."""
    return share(value).removesuffix(" of its limit").removesuffix(" its limit")


def _named(problem: str) -> str:
    """What a rule that waives it has to name, if it has to."""
    kind = ProblemKind(problem)
    return "" if kind.is_of_degree or kind is ProblemKind.LIMIT else f" [{kind}]"


def _why(reason: str | None) -> str:
    return f" (waived: {reason})" if reason else ""


def _cell(text: str) -> str:
    """A bar would begin another cell, in code too."""
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _p(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"
