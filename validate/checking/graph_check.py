"""The graphs of a bundle beside those that this version exports.

What differs is a note: another version may have exported it, in other words. It is a problem where
the values differ, also in the body of a function that no backend of the run looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.errors import GlmTrtError
from glm_trt.validate.checking.fresh_graphs import FreshGraphs
from glm_trt.validate.checking.graph_difference import GRAPH, GraphDifference, differences
from glm_trt.validate.checking.graph_values import body_problem, graph_problem
from glm_trt.validate.running.reference import Reference

Report = dict[str, Any]
DIFFERENCES_SHOWN = 20


@dataclass(frozen=True)
class KindCheck:
    """One kind: in what its graphs differ, by dtype, and what is wrong with the values.

    Attributes
    ----------
    blocks : the names of those that run the graph.
    nodes : where there is a problem, the operators of the bundle's graph that it may be in.
    skipped : why nothing was compared.
    """

    kind: str
    blocks: tuple[str, ...]
    differences: tuple[tuple[str, GraphDifference], ...] = ()
    problem: str | None = None
    nodes: tuple[onnx.NodeProto, ...] = ()
    skipped: str | None = None

    def to_dict(self) -> Report:
        """For the report."""
        shown = self.differences[:DIFFERENCES_SHOWN]
        return {
            "kind": self.kind, "blocks": list(self.blocks),
            "differences": [
                {"dtype": dtype, "part": x.part, "what": x.what, "text": x.text}
                for dtype, x in shown
            ],
            "more": len(self.differences) - len(shown),
            "problem": self.problem, "skipped": self.skipped,
        }  # fmt: skip


def open_fresh(bundle: Bundle, dtype: str) -> FreshGraphs:
    """Begin to trace the kinds of the bundle in `dtype`; of float64, which no bundle has, the
    graphs of float32 are as they should be.
    """
    return FreshGraphs(bundle.manifest.config, bundle.kinds, graph_dtype(dtype))


def graph_dtype(dtype: str) -> str:
    """The dtype of the graphs that are compared where the backend's is `dtype`."""
    return "float32" if dtype == "float64" else dtype


def check_graphs(
    bundle: Bundle,
    reference: Reference,
    dtype: str,
    fresh: FreshGraphs,
    progress: Callable[..., None] = lambda *_: None,
) -> Report:
    """The part `graphs` of a report."""
    dtype = graph_dtype(dtype)
    if dtype not in bundle.manifest.dtypes:
        return {"dtype": dtype, "skipped": f"the bundle has none in {dtype}", "kinds": []}
    checks = []
    for i, kind in enumerate(bundle.kinds):
        progress(f"comparing graphs ({i + 1} of {len(bundle.kinds)})")
        checks.append(check_kind(bundle, reference, kind, dtype, fresh).to_dict())
    return {"dtype": dtype, "skipped": None, "kinds": checks}


def check_kind(
    bundle: Bundle, reference: Reference, kind: str, dtype: str, fresh: FreshGraphs
) -> KindCheck:
    """Compare the graph of `kind` in `dtype`, and the functions of those in other dtypes."""
    blocks = [x for x in (*bundle.blocks, *bundle.prediction_blocks) if x.kind == kind]
    names = tuple(block.name for block in blocks)
    try:
        ours = fresh.model(kind)
    except GlmTrtError as error:
        return KindCheck(kind, names, skipped=str(error))
    found: list[tuple[str, GraphDifference]] = []
    problems: list[str] = []
    nodes: list[onnx.NodeProto] = []
    judged: set[bytes] = set()  # bodies, which are the same in all dtypes
    for other in dict.fromkeys((dtype, *bundle.manifest.dtypes)):
        theirs = onnx.load(bundle.graph_path(kind, other))
        unlike = differences(theirs, ours)
        if other != dtype:  # its nodes are not those of this dtype
            unlike = [x for x in unlike if x.part != GRAPH]
        found += [(other, x) for x in unlike]
        for name in dict.fromkeys(x.part for x in unlike if x.part != GRAPH):
            _judge_body(name, theirs, ours, judged, problems, nodes)
        if any(x.part == GRAPH for x in unlike):
            _judge_graph(bundle, blocks[0], reference, theirs, ours, dtype,
                         unlike, problems, nodes)  # fmt: skip
    problem = "; ".join(problems) if problems else None
    return KindCheck(kind, names, tuple(found), problem, tuple(nodes))


def _judge_body(
    name: str, theirs: onnx.ModelProto, ours: onnx.ModelProto, judged: set[bytes],
    problems: list[str], nodes: list[onnx.NodeProto],
) -> None:  # fmt: skip
    callers = [node for node in theirs.graph.node if node.op_type == name]
    right = next((f for f in ours.functions if f.name == name), None)
    body = next((f for f in theirs.functions if f.name == name), None)
    content = b"" if body is None else body.SerializeToString(deterministic=True)
    if not callers or right is None or content in judged:
        return
    judged.add(content)
    problem = "there is none" if body is None else body_problem(body, right)
    if problem is not None:
        problems.append(f"the body of {name}: {problem}")
        nodes += callers


def _judge_graph(
    bundle: Bundle, block: Block, reference: Reference, theirs: onnx.ModelProto,
    ours: onnx.ModelProto, dtype: str, unlike: list[GraphDifference],
    problems: list[str], nodes: list[onnx.NodeProto],
) -> None:  # fmt: skip
    try:
        problem = graph_problem(bundle, block, reference, theirs, ours, dtype)
    except GlmTrtError as error:  # of the graph as it should be
        problem = f"the values cannot be compared: {error}"
    if problem is None:
        return
    of_graph = [x for x in unlike if x.part == GRAPH]
    more = f", and {len(of_graph) - 1} more differences" if len(of_graph) > 1 else ""
    problems.append(f"{of_graph[0].text}{more}: {problem}")
    inserted = [x.node for x in of_graph if x.what == "inserted" and x.node is not None]
    nodes += inserted or [x.node for x in of_graph if x.node is not None]
