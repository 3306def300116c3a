"""Finding the operator of a block whose result leaves its bound.

Values of the backend's run are *known*: inputs, outputs, and what has been marked. Each known value
is held against what the operators between it and the known values before it should have made of
those: exactly, and in the backend's dtype, which gives the bound. So an earlier fault, or a choice
that rounding decided, is no fault of later operators. Between the first known value that leaves its
bound and those before it, a few more are marked and the block is run again, until a single
operator is left. Never are all values marked at once: engines fuse what no one looks at, and that
may be where the fault is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.contract import Chooser
from glm_trt.plugins.folders import contract_of
from glm_trt.validate.judging.choices import compare_choices
from glm_trt.validate.judging.compare import Choices
from glm_trt.validate.judging.figures import Report
from glm_trt.validate.judging.limits import (
    ALLOWED_RATIO,
    explain,
    explain_slope,
    limit_share,
    pair_entry,
)
from glm_trt.validate.judging.measure import Pair, output_dtype
from glm_trt.validate.judging.systematic import ITSELF, Judged, Systematic, judged
from glm_trt.validate.running.graph_evaluator import GraphEvaluator
from glm_trt.validate.running.reference import RecordingOperators, as_array, as_tensor

Array = NDArray[Any]
Arrays = dict[str, Array]
# Values marked at once, beside those between which the fault is known to lie.
MARKED = 6
# Runs of the block at most; each leaves a region of a MARKED-th, so that no graph needs more.
MOST_RUNS = 12
MOST_SLACK = 1e3
# A slack of 0: what the dtype costs, with nothing on top for chance or by contracts, and gains and
# biases too. For faults so small that a block is barely out of tolerance.
STRICT = 0.0
# Of an operator without a contract: that of most which have one.
USUAL_TOLERANCE = {"float64": 1e-12, "float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}


@dataclass(frozen=True)
class Check:
    """One known value: `problem` is "" where it is within its bound.

    `nodes` are the operators between it and the known values before it, in topological order;
    `share` is how much of its bound it takes, None of what has none (indices, not finite).
    """

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    problem: str
    worst: Report
    expected: Array
    found: Array
    share: float | None = None


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes
    ----------
    bad : the first value beyond its bound; None where no value is.
    steps : the values that were marked in each run, and the first bad one ("" if none was).
    vanished : whether marking more values made the fault go away, so that it lies in how the
        backend joins the operators of `bad`.
    known : the backend's values of the last run in which `bad` was bad.
    suspected : whether no value left its bound, and `bad` is what takes the largest share of it.
    """

    bad: Check | None
    steps: tuple[tuple[tuple[str, ...], str], ...]
    vanished: bool
    known: Arrays
    suspected: bool = False


class OperatorSearch:
    """Checks known values of one block.

    Parameters
    ----------
    model : the graph as it should be, in the backend's dtype.
    weights : exact ones (float64) and those in the dtype, by name.
    dtype : the backend's.
    """

    def __init__(
        self,
        config: ModelConfig,
        model: onnx.ModelProto,
        weights: tuple[Mapping[str, Any], Mapping[str, Any]],
        dtype: str,
    ) -> None:
        self.config, self.graph, self.dtype = config, model.graph, dtype
        self._operators = RecordingOperators(), RecordingOperators()
        self._evaluators = tuple(
            GraphEvaluator(model, operators, exact=i == 0)
            for i, operators in enumerate(self._operators)
        )
        self._weights = weights
        self._inner = _inner_values(model)

    def search(self, run: Callable[[tuple[str, ...]], Arrays], inputs: Arrays) -> Search:
        """Narrow down; `run` runs the block with these values marked and gives all it knows.

        Where no output is beyond its bound, inner values are marked all the same: those between
        which the operators lie that take the largest share of their bound.
        """
        marked: tuple[str, ...] = ()
        steps: list[tuple[tuple[str, ...], str]] = []
        last: tuple[Check, Arrays] | None = None
        tried: set[str] = set()
        slack: float | None = None
        suspect: Check | None = None
        inside: set[str] | None = None
        for _ in range(MOST_RUNS):
            known = run(marked)
            stop = last[0].name if last else None
            slack = self._first_slack(inputs, known) if slack is None else slack
            bad = self.first_bad(inputs, known, stop, slack)
            while bad is None and slack > (1 if last else STRICT):
                slack = max(1.0, slack / 10) if slack > 1 else STRICT
                bad = self.first_bad(inputs, known, stop, slack)
            steps.append((marked, bad.name if bad else ""))
            if bad is None and last is None:
                suspect = self._largest(inputs, known, inside) or suspect
                inner = self._to_mark(suspect, tried) if suspect else ()
                if suspect is None or not inner:
                    return Search(suspect, tuple(steps), False, known, suspected=True)
                tried |= set(inner)
                marked = (*self.boundary(suspect, known), *inner)
                inside = {name for node in suspect.nodes for name in node.output}
                continue
            if bad is None:
                break
            last = bad, known
            tried |= set(marked)
            inner = self._to_mark(bad, tried)
            if not inner:
                return Search(bad, tuple(steps), False, known)
            marked = (*self.boundary(bad, known), *inner)
        if last is None:
            return Search(suspect, tuple(steps), False, known, suspected=True)
        return Search(last[0], tuple(steps), steps[-1][1] == "", last[1])

    def _first_slack(self, inputs: Arrays, known: Arrays) -> float:
        """How much wider than its bound an operator's may be at first.

        A few operators on a few tokens leave their bound by chance more easily than a block does.
        A fault that puts the block far out of tolerance is far beyond such chance itself, unless
        what follows amplifies it: then bounds are narrowed again.
        """
        return min(max(self.worst_share(inputs, known) ** 0.5, 1.0), MOST_SLACK)

    def worst_share(self, inputs: Arrays, known: Arrays) -> float:
        """The largest share of a bound that a known value takes; 1 where none has one."""
        shares = [check.share for check in self.checks(inputs, known)]
        return max((share for share in shares if share is not None), default=1.0)

    def _largest(self, inputs: Arrays, known: Arrays, inside: set[str] | None) -> Check | None:
        """The value, of those `inside` if given, that takes the largest share of its bound; its
        problem says so.
        """
        checks = [
            check
            for check in self.checks(inputs, known, STRICT)
            if check.share is not None and (inside is None or check.name in inside)
        ]
        found = max(checks, key=lambda check: check.share or 0.0, default=None)
        if found is None or not found.share:
            return None
        text = f"within its bound, of which it takes {found.share:.0%}: the largest share"
        return replace(found, problem=text)

    def first_bad(
        self, inputs: Arrays, known: Arrays, stop: str | None = None, slack: float = 1.0
    ) -> Check | None:
        """The first known value, in the order of the graph up to `stop`, beyond its bound."""
        for check in self.checks(inputs, known, slack):
            if check.problem:
                return check
            if check.name == stop:
                return None
        return None

    @torch.no_grad()
    def checks(self, inputs: Arrays, known: Arrays, slack: float = 1.0) -> Iterator[Check]:
        """Each known value in the order of the graph; `slack` times its bound is allowed, see
        `STRICT`.
        """
        exact: dict[str, Any] = {**self._weights[0], **self._evaluators[0].constants}
        rounded: dict[str, Any] = {**self._weights[1], **self._evaluators[1].constants}
        for name, array in inputs.items():
            exact[name] = as_tensor(name, array, "float64")
            rounded[name] = as_tensor(name, array, self.dtype)
        regions: dict[str, tuple[onnx.NodeProto, ...]] = {}
        for node in self.graph.node:
            behind = self._merged(node, regions)
            made = [
                evaluator.evaluate(node, values)
                for evaluator, values in zip(self._evaluators, (exact, rounded), strict=True)
            ]
            for name in node.output:
                if not name:
                    continue
                if name not in known:
                    exact[name], rounded[name] = made[0][name], made[1][name]
                    regions[name] = behind
                    continue
                arrays = {
                    "exact": as_array(made[0][name]), "rounded": as_array(made[1][name]),
                    "found": known[name],
                }  # fmt: skip
                yield self._check(node, name, behind, arrays, slack)
                exact[name] = _like(known[name], made[0][name])
                rounded[name] = _like(known[name], made[1][name])

    def _merged(
        self, node: onnx.NodeProto, regions: dict[str, tuple[onnx.NodeProto, ...]]
    ) -> tuple[onnx.NodeProto, ...]:
        """The operators behind the node's unknown inputs, and itself, in order."""
        names = {other.name for x in node.input for other in regions.get(x, ())}
        return (*(other for other in self.graph.node if other.name in names), node)

    def _check(
        self,
        node: onnx.NodeProto,
        name: str,
        behind: tuple[onnx.NodeProto, ...],
        arrays: Arrays,
        slack: float,
    ) -> Check:
        expected, found = arrays["exact"], arrays["found"]
        if expected.shape != found.shape:
            text = f"expected shape {expected.shape}, found {found.shape}"
            return Check(name, behind, text, {}, expected, found)
        contract = contract_of(node)
        chooser = contract.form if contract and isinstance(contract.form, Chooser) else None
        if chooser and found.dtype.kind in "iu":
            text = self._choice_problem(node, chooser.output, arrays)
            return Check(name, behind, text, _first_unlike(expected, found), expected, found)
        if found.dtype.kind in "iub":
            same = np.array_equal(expected, found)
            worst = {} if same else _first_unlike(expected, found)
            return Check(name, behind, "" if same else "other values", worst, expected, found)
        if chooser:  # of others that were taken, in another order
            arrays = {chain: np.sort(array, -1) for chain, array in arrays.items()}
        pair = Pair.of(output_dtype(name, self.dtype))
        as_rows = {c: array.reshape(-1, array.shape[-1] if array.ndim else 1)
                   for c, array in arrays.items()}  # fmt: skip
        pair.add(as_rows, name)
        if slack == STRICT:
            entry = pair_entry(pair, self.dtype, standard_errors=0.0)
        else:
            entry = pair_entry(pair, self.dtype, tolerance=_tolerance(behind, self.dtype))
        share, gain = limit_share(entry), None
        if share is not None and share <= max(slack, 1.0):
            gain = _gain(as_rows, self.dtype) if slack == STRICT else None
            if gain is None or gain.share <= 1:
                return Check(name, behind, "", {}, expected, found, share)
            share = gain.share
        worst = entry["worst"]
        flat = int(np.ravel_multi_index(worst["coordinates"], as_rows["exact"].shape))
        at = [int(i) for i in np.unravel_index(flat, expected.shape)]
        worst = worst | {"coordinates": at}
        problem = explain_slope(gain) if gain else explain(entry | {"worst": worst})
        return Check(name, behind, problem, worst, expected, found, share)

    def _choice_problem(self, node: onnx.NodeProto, output: str, arrays: Arrays) -> str:
        scores = [
            {name: as_array(x) for name, x in operators.scores.items()}
            for operators in self._operators
        ]
        pooled = Choices()
        outputs = {chain: {output: array} for chain, array in arrays.items()}
        compare_choices(
            self.config, output, outputs, (scores[0], scores[1]), pooled, node.output[0]
        )
        return pooled.first_wrong or pooled.first_impossible

    def boundary(self, bad: Check, known: Arrays) -> tuple[str, ...]:
        """The inner values between which the region of `bad` lies."""
        names = dict.fromkeys(name for node in bad.nodes for name in node.input)
        return tuple(name for name in (*names, bad.name) if name in known and name in self._inner)

    def _to_mark(self, bad: Check, tried: set[str]) -> tuple[str, ...]:
        """Some values inside the region of `bad`, evenly spread; none where all were tried."""
        inner = [
            name
            for node in bad.nodes
            for name in node.output
            if name in self._inner and name != bad.name and name not in tried
        ]
        if len(inner) <= MARKED:
            return tuple(inner)
        places = np.linspace(0, len(inner) - 1, MARKED + 2)[1:-1].astype(int)
        return tuple(inner[i] for i in places)


def _gain(as_rows: Arrays, dtype: str) -> Judged | None:
    """The gain or bias of a value that takes most of what it is allowed."""
    pooled = Systematic()
    pooled.add(as_rows, {ITSELF: as_rows["exact"]}, None, channels=False)
    slopes = judged(pooled, dtype, ALLOWED_RATIO[dtype])
    return max(slopes, key=lambda of: of.share, default=None)


def _like(array: Array, tensor: torch.Tensor) -> torch.Tensor:
    return as_tensor("", array, "float64").to(tensor.dtype)


def _first_unlike(expected: Array, found: Array) -> Report:
    """The first element that differs, as the worst of a choice."""
    unlike = np.argwhere(expected != found)
    if not len(unlike):
        return {}
    at = tuple(int(i) for i in unlike[0])
    return {
        "coordinates": list(at), "expected": float(expected[at]), "found": float(found[at]),
    }  # fmt: skip


def _inner_values(model: onnx.ModelProto) -> set[str]:
    outputs = {value.name for value in model.graph.output}
    return {name for node in model.graph.node for name in node.output if name} - outputs


def _tolerance(nodes: tuple[onnx.NodeProto, ...], dtype: str) -> float:
    """What the operators' contracts allow: one value may be rounded well by chance in one of two
    right implementations, which a whole block is not.
    """
    contracts = [contract for node in nodes if (contract := contract_of(node))]
    return max([USUAL_TOLERANCE[dtype], *(c.tolerance.get(dtype, 0.0) for c in contracts)])
