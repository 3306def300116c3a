"""Finding the first block out of tolerance, and the operator in it whose result is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.errors import BlockError
from glm_trt.validate.checking.fresh_graphs import FreshGraphs
from glm_trt.validate.checking.graph_check import KindCheck, check_kind, graph_dtype, open_fresh
from glm_trt.validate.checking.graph_difference import differences, inserted_before
from glm_trt.validate.finding.operator_search import Array, Arrays, OperatorSearch, Search
from glm_trt.validate.finding.reproducer import Reproducer, shrink, write_reproducer
from glm_trt.validate.finding.runtime_search import find_parting
from glm_trt.validate.judging.figures import Report, g
from glm_trt.validate.judging.measure import Measures
from glm_trt.validate.judging.policy import RUNTIME
from glm_trt.validate.judging.problem_kinds import ProblemKind
from glm_trt.validate.judging.problems import PROBLEMS_SHOWN
from glm_trt.validate.judging.verdict import block_severity, judge_block
from glm_trt.validate.running.cases import make_cases
from glm_trt.validate.running.reference import Reference, fitting_threads
from glm_trt.validate.running.subjects import Subject, as_backend, open_subject, require_subject
from glm_trt.validate.running.walk import Flow, Observation, start
from glm_trt.validate.validation import ValidationOptions, all_blocks, open_bundle, walk

# What is done now, with its count; and how much of the work is behind it, from 0 to 1.
Progress = Callable[..., None]
# A run of this share of the worst one's error, in multiples of what is allowed, is as clear.
CLEAR = 0.1


@dataclass(frozen=True)
class Failure:
    """The first block out of tolerance: its problems, an input on which it is wrong, and which of
    its weights are not the checkpoint's.
    """

    block: str
    problems: list[str]
    observation: Observation | None
    weights: tuple[str, ...] = ()


def bisect_bundle(
    directory: Path,
    options: ValidationOptions,
    output: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Report:
    """Where a bundle first leaves its tolerance: `ok`, or the block, the operator, the element.

    Parameters
    ----------
    options : as for a validation; no policy is looked at and nothing is saved.
    output : where to write a reproducer.

    Raises
    ------
    BundleError, CheckpointError, MissingCapabilityError
        As in a validation.
    """
    progress("loading")
    require_subject(options.backend)
    bundle = open_bundle(directory, options.checkpoint)
    reference = Reference(bundle, options.checkpoint)
    subject = open_subject(bundle, options.backend, options.dtype, options.provider)
    with (
        closing(subject), closing(open_fresh(bundle, subject.dtype)) as fresh,
        fitting_threads(bundle),
    ):  # fmt: skip
        progress("continuing prompts")
        flows = [start(case) for case in make_cases(bundle, reference, options.cases)]
        kinds = {block.name: block.kind for block in all_blocks(bundle)}
        measures = Measures(bundle.config, subject.dtype, [flow.case for flow in flows], kinds)
        walked = walk(bundle, reference, subject, flows, progress)
        failure = first_failure(measures, walked)
        report: Report = {
            "format": "glm-trt bisection", "format_version": 1, "ok": failure is None,
            "bundle": str(directory), "backend": options.backend, "dtype": subject.dtype,
            "reference": reference.source,
        }  # fmt: skip
        if failure is None:
            progress("comparing graphs")
            unlike = _unlike_kind(bundle, reference, subject.dtype, fresh)
            return report if unlike is None else report | _of_graph(unlike)
        report |= {"block": failure.block, "problems": failure.problems}
        if failure.block == RUNTIME:
            progress("following the runtime")
            return report | _of_runtime(subject, flows)
        if failure.observation is None:
            return report | {"operator": None}
        block = next(block for block in all_blocks(bundle) if block.name == failure.block)
        progress(f"searching {block.name}")
        seen = failure.observation
        report["place"] = seen.place
        found = search_block(
            bundle, block, reference, subject, fresh, seen, report, output, progress
        )
        return report | _of_weights(found, fresh.model(block.kind), failure)


def _of_weights(found: Report, model: onnx.ModelProto, failure: Failure) -> Report:
    """A search in a block some of whose weights are not the checkpoint's: what reads one of them
    is where it is wrong, though a search may see less than its bound, or its consequences alone.
    """
    if not failure.weights:
        return found
    readers = [node for node in model.graph.node if set(node.input) & set(failure.weights)]
    found = found | {"weights": list(failure.weights)}
    named = {node["name"] for node in found["region"]}
    if not readers or named & {node.name for node in readers}:
        return found
    entry, problem = _node_entry(readers[0]), failure.problems[-1]
    return found | {
        "operator": entry, "region": [entry], "suspected": False, "vanished": False,
        "value": entry["outputs"][0], "problem": problem, "coordinates": None, "expected": None,
        "found": None,
    }  # fmt: skip


def _of_runtime(subject: Subject, flows: list[Flow]) -> Report:
    """The finding where the blocks are right, and the runtime that joins them is not."""
    backend = as_backend(subject)
    parting = None if backend is None else find_parting(backend, flows)
    layer = None if parting is None else asdict(parting)
    return {"operator": None, "layer": layer}


def _unlike_kind(
    bundle: Bundle, reference: Reference, dtype: str, fresh: FreshGraphs
) -> KindCheck | None:
    """The first kind whose graph makes other values than the one that this version exports."""
    dtype = graph_dtype(dtype)
    if dtype not in bundle.manifest.dtypes:
        return None
    checks = (check_kind(bundle, reference, kind, dtype, fresh) for kind in bundle.kinds)
    return next((check for check in checks if check.problem is not None), None)


def _of_graph(check: KindCheck) -> Report:
    """The finding where no block is out of tolerance, but the graph of one would make it so."""
    nodes = [_node_entry(node) for node in check.nodes]
    return {
        "ok": False, "block": check.blocks[0], "problems": [f"graph: {check.problem}"],
        "place": "none of a case: the backend does not run what differs", "steps": [],
        "operator": nodes[0] if nodes else None, "region": nodes[:1], "vanished": False,
        "value": nodes[0]["outputs"][0] if nodes else None, "problem": check.problem,
        "coordinates": None, "expected": None, "found": None,
        "graph_differs": check.differences[0][1].text,
    }  # fmt: skip


def first_failure(
    measures: Measures, walked: Iterable[tuple[str, Iterable[Observation]]]
) -> Failure | None:
    """Walk until a block (or the runtime) is out of tolerance."""
    for name, of_block in walked:
        observations = list(of_block)
        for seen in observations:
            measures.add(seen)
        problems = judge_block(measures, name)
        if not problems:
            continue
        isolated = [seen for seen in observations if seen.mode not in ("propagated", "weights")]
        other = tuple(
            finding.output
            for finding in measures.results[name].findings
            if finding.kind is ProblemKind.WEIGHTS
        )
        return Failure(name, problems, _clearest(measures, isolated), other)
    return None


def _clearest(measures: Measures, observations: list[Observation]) -> Observation | None:
    """Of the runs that are nearly as far out of tolerance as the worst, the one with the fewest
    tokens; the worst where none is out of tolerance by itself.
    """
    if not observations:
        return None
    cases = list(measures.cases.values())
    severity = []
    for seen in observations:
        alone = Measures(measures.config, measures.dtype, cases, measures.kinds)
        alone.add(seen)
        severity.append(block_severity(alone, seen.block))
    clear = [
        seen
        for seen, size in zip(observations, severity, strict=True)
        if size >= max(CLEAR * max(severity), 1.0) or size == max(severity)
    ]
    return min(clear, key=_tokens)


def _tokens(seen: Observation) -> int:
    name = next(n for n in ("hidden_out", "logits") if n in seen.tensors["exact"])
    batch, length = seen.tensors["exact"][name].shape[:2]
    return batch * length


def search_block(
    bundle: Bundle,
    block: Block,
    reference: Reference,
    subject: Subject,
    fresh: FreshGraphs,
    seen: Observation,
    failed: Report,
    output: Path | None,
    progress: Progress,
) -> Report:
    """The part of a bisection that is about one input of one block; `failed` is the other part."""
    dtype, inputs = subject.dtype, seen.inputs
    assert inputs is not None
    model = fresh.model(block.kind)  # what the bundle's graph should be, not what it is
    weights = reference.weights(block, "float64"), reference.weights(block, dtype)
    search = OperatorSearch(bundle.config, model, weights, dtype)

    def run(marked: tuple[str, ...], given: Arrays) -> Arrays:
        subject.mark(block.kind, marked)
        try:
            return subject.run_block(block, given)
        finally:
            subject.mark(block.kind, ())

    difference = {"graph_differs": graph_difference(bundle, block, model, dtype)}
    try:
        inputs = _clearer(search, run, inputs, seen.rows)
        found = search.search(lambda marked: run(marked, inputs), inputs)
    except BlockError as error:
        return failed | refused_operator(model, str(error)) | difference
    inserted = inserted_nodes(bundle, block, model, dtype, found)
    report = failed | describe(found) | difference | {"inserted": inserted}
    if found.bad is None or output is None:
        return report
    progress("shrinking the input")
    name, marked = found.bad.name, search.boundary(found.bad, found.known)

    def still_bad(given: Arrays) -> Search | None:
        try:
            known = run(marked, given)
        except BlockError:  # another fault
            return None
        bad = search.first_bad(given, known, name)
        return Search(bad, (), found.vanished, known) if bad and bad.name == name else None

    small = shrink(bundle, block, inputs, still_bad)
    report["reproducer"] = write_reproducer(
        Reproducer(bundle, block, dtype, small.inputs, small.search or found), report, output
    )
    return report


def _clearer(
    search: OperatorSearch,
    run: Callable[[tuple[str, ...], Arrays], Arrays],
    inputs: Arrays,
    rows: Array | None,
) -> Arrays:
    """The inputs with other tokens in the place of padding, unless the fault goes with it.

    A block's outputs are compared without padding, inner values whole: it is large, so that what is
    wrong with the tokens is little beside it.
    """
    if rows is None or rows.all() or not rows.any():
        return inputs
    filled = dict(inputs)
    for name in {"hidden", "embedded"} & set(inputs):
        filled[name] = inputs[name].copy()
        tokens = inputs[name][rows]
        filled[name][~rows] = tokens[np.arange((~rows).sum()) % len(tokens)]
    shares = [search.worst_share(of, run((), of)) for of in (inputs, filled)]
    return filled if shares[1] >= shares[0] else inputs


def describe(found: Search) -> Report:
    """A search as data."""
    steps = [{"marked": list(marked), "bad": bad} for marked, bad in found.steps]
    report: Report = {"steps": steps, "operator": None, "region": []}
    if found.bad is None:
        return report
    nodes = [_node_entry(node) for node in found.bad.nodes]
    return report | {
        "operator": nodes[-1],
        "region": nodes,
        "suspected": found.suspected,
        "vanished": found.vanished,
        "value": found.bad.name,
        "problem": found.bad.problem,
        "coordinates": found.bad.worst.get("coordinates"),
        "expected": found.bad.worst.get("expected"),
        "found": found.bad.worst.get("found"),
    }


def inserted_nodes(
    bundle: Bundle, block: Block, model: onnx.ModelProto, dtype: str, found: Search
) -> list[Report]:
    """The operators of the bundle's graph that `model` has not, where the bad value comes from."""
    if found.bad is None or dtype not in bundle.manifest.dtypes:
        return []
    made = {name for node in found.bad.nodes for name in node.output}
    known = {name for node in found.bad.nodes for name in node.input} - made
    theirs = onnx.load(bundle.graph_path(block.kind, dtype))
    return [_node_entry(node) for node in inserted_before(found.bad.name, known, theirs, model)]


def refused_operator(model: onnx.ModelProto, error: str) -> Report:
    """What a search would give, of a block that does not run: the operator that its error names."""
    named = [node for node in model.graph.node if re.search(rf"\b{re.escape(node.name)}\b", error)]
    operator = _node_entry(named[0]) if named else None
    value = named[0].output[0] if named else None
    return {
        "steps": [], "operator": operator, "region": [operator] if operator else [],
        "vanished": False, "value": value, "problem": error, "coordinates": None,
        "expected": None, "found": None,
    }  # fmt: skip


def _node_entry(node: onnx.NodeProto) -> Report:
    return {
        "name": node.name, "op_type": node.op_type, "domain": node.domain,
        "inputs": list(node.input), "outputs": list(node.output),
    }  # fmt: skip


def describe_finding(report: Report) -> str:
    """A bisection's result in a few lines."""
    what = f"{report['bundle']} on {report['backend']} in {report['dtype']}"
    if report["ok"]:
        return f"{what}: no block is out of tolerance"
    lines = [f"{what}: {report['block']} is the first block out of tolerance"]
    lines += [f"  {problem}" for problem in report["problems"][:PROBLEMS_SHOWN]]
    if layer := report.get("layer"):
        rows, tokens = layer["shape"]
        lines.append(
            f"  layer         {layer['block']}: the runtime parts there from the same blocks run "
            f"alone, by {layer['before']:.1e} before it and {layer['behind']:.1e} behind it"
        )
        lines.append(
            f"  pass          {layer['number']}: {rows} row(s) of {tokens} token(s) behind "
            f"{layer['past']}"
        )
    elif report["operator"] is None:
        lines.append(
            "  operator      none: each is within its bound on this input, or the backend shows no "
            "inner values"
        )
    else:
        operator = report["operator"]
        lines += [
            f"  operator      {operator['op_type']} ({operator['name']}), which makes "
            f"{report['value']}",
            f"  value         {report['problem']}",
            f"  input         {report['place']}",
        ]
        if report["coordinates"] is not None:
            lines.append(
                f"  at            {report['coordinates']}: expected {g(report['expected'])}, found "
                f"{g(report['found'])}"
            )
        for node in report.get("inserted", []):
            lines.append(
                f"  inserted      {node['op_type']} ({node['name']}), which is not exported, makes "
                f"{', '.join(node['outputs'])}"
            )
        if report["steps"]:
            most = max(len(step["marked"]) for step in report["steps"])
            lines.append(f"  runs          {len(report['steps'])}, with up to {most} values marked")
        if report["vanished"]:
            region = ", ".join(node["op_type"] for node in report["region"])
            lines.append(f"  note          right when more is marked: how {region} are joined")
    if report.get("graph_differs"):
        lines.append(f"  graph         not as exported: {report['graph_differs']}")
    if found := report.get("reproducer"):
        lines.append(f"  reproducer    {found['directory']}: {found['tokens']} token(s)")
    return "\n".join(lines)


def graph_difference(
    bundle: Bundle, block: Block, model: onnx.ModelProto, dtype: str
) -> str | None:
    """The first thing in which the bundle's graph is not what this version exports; no fault by
    itself, as another version may have exported it.
    """
    if dtype not in bundle.manifest.dtypes:
        return None
    found = differences(onnx.load(bundle.graph_path(block.kind, dtype)), model)
    return found[0].text if found else None
