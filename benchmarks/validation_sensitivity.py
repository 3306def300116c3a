"""The smallest gain or bias of a layer that validation notices, by putting it there.

A layer's graph is changed so that what a part of it adds to the hidden state comes out times 1 + g,
or with a bias, in float64 before the sum is rounded, as a kernel with a wrong scale would leave it.
The layer then runs on every input that `glm-trt validate` feeds it alone from text and ids, is
judged as there, and g is narrowed down until it is just noticed. What probes and the whole pass
would notice besides does not count. Of both signs the one that is noticed later counts. A bias is
relative to the root mean square of what the layer adds, and is put into all channels or into one.

float32 runs on onnxruntime, bfloat16 and float16 node by node. The table has the median of all
layers of all bundles, and the worst layer.

Exit codes: 0 reported, 1 a layer without a fault is not within tolerance: what is noticed there
says nothing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.states import STATE_AXES
from glm_trt.validate.judging.measure import BlockResult, Measures, is_state
from glm_trt.validate.judging.systematic import BIAS, STANDARD_ERRORS, UPDATE
from glm_trt.validate.judging.verdict import block_severity, judge_block
from glm_trt.validate.running.cases import CaseOptions, make_cases
from glm_trt.validate.running.reference import Reference, fitting_threads
from glm_trt.validate.running.subjects import Subject, default_subject, open_subject
from glm_trt.validate.running.walk import Observation, runners_of, start, walk_block, written

Arrays = dict[str, Any]
CHANNEL = "bias of one channel"
# Gains and biases come as integers, which no dtype of a graph rounds, in units of this.
GAIN, BIASES, UNIT = "injected_gain", "injected_biases", 2.0**-50
# So close to one another are what is noticed and what is not.
CLOSE = 1.05
# What is tried. Where any bias is noticed, it is as sums that lie between two numbers of the dtype
# are then all rounded to the same side.
LEAST, MOST = 1e-9, 1.0


class Injected(Bundle):
    """A bundle whose layers have a gain in one part of what they add, and biases."""

    place: Path
    part: str

    def graph_path(self, kind: str, dtype: str) -> Path:
        """As of the base class; a layer's is changed."""
        path = super().graph_path(kind, dtype)
        if not any(block.kind == kind and block.layer is not None for block in self.blocks):
            return path
        changed = self.place / f"{kind}-{dtype}-{self.part}.onnx"
        model = onnx.load(path)
        inject(model, self.part)
        onnx.save(model, changed)
        return changed


def parts_of(model: onnx.ModelProto) -> dict[str, tuple[onnx.NodeProto, int]]:
    """What a layer adds to its hidden state: part → the addition that takes it, and as which of its
    inputs. The one that gives what the layer hands on is named `UPDATE`, with the residual's place.
    """
    made = {name: node for node in model.graph.node for name in node.output}

    def addition(name: str) -> onnx.NodeProto | None:
        node = made.get(name)
        while node is not None and node.op_type in ("Reshape", "Identity"):
            node = made.get(node.input[0])
        return node if node is not None and node.op_type == "Add" else None

    last = addition("hidden_out")
    assert last is not None, "the hidden state is no sum"
    before = next(i for i in (0, 1) if addition(last.input[i]) and _reads(made, last.input[i]))
    attended = addition(last.input[before])
    assert attended is not None
    residual = next(i for i in (0, 1) if _is_hidden(made, attended.input[i]))
    found = {UPDATE: (last, before), "attention": (attended, 1 - residual)}
    mixed = addition(last.input[1 - before])
    if mixed is None:
        return found | {"mlp": (last, 1 - before)}
    experts = next(i for i in (0, 1) if "Experts" in made[mixed.input[i]].op_type)
    return found | {"experts": (mixed, experts), "shared_experts": (mixed, 1 - experts)}


def _is_hidden(made: dict[str, onnx.NodeProto], name: str) -> bool:
    while name in made and made[name].op_type in ("Reshape", "Identity"):
        name = made[name].input[0]
    return name == "hidden"


def _reads(made: dict[str, onnx.NodeProto], name: str) -> bool:
    """Whether one of the terms of the sum `name` is the hidden state."""
    node = made[name]
    while node.op_type in ("Reshape", "Identity"):
        node = made[node.input[0]]
    return any(_is_hidden(made, term) for term in node.input)


def inject(model: onnx.ModelProto, part: str) -> None:
    """Give the graph of a layer the input `GAIN`, an integer, and, where the part is all that it
    adds, `BIASES`, one for each channel; at zero it does as before.
    """
    of_parts = parts_of(model)
    node, at = of_parts[part]
    attended, attention = of_parts["attention"]
    dtype = next(x for x in model.graph.output if x.name == "hidden_out").type.tensor_type
    width = dtype.shape.dim[-1].dim_value
    shapes: dict[str, list[int]] = {GAIN: [1]} | ({BIASES: [width]} if part == UPDATE else {})
    for name, shape in shapes.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
    model.graph.initializer.append(numpy_helper.from_array(np.array(UNIT), "injected_unit"))
    nodes: list[onnx.NodeProto] = []

    def wide(name: str) -> str:
        nodes.append(helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.DOUBLE))
        return f"{name}_wide"

    def of(op_type: str, a: str, b: str, name: str) -> str:
        nodes.append(helper.make_node(op_type, [a, b], [name]))
        return name

    gain = of("Mul", wide(GAIN), "injected_unit", "injected_factor")
    terms = [wide(name) for name in node.input]
    total = of("Add", terms[0], terms[1], "injected_sum")
    if part == UPDATE:  # all that is added: the sum without what came in
        scaled = of("Sub", total, wide(attended.input[1 - attention]), "injected_update")
    else:
        scaled = terms[at]
    total = of("Add", total, of("Mul", scaled, gain, "injected_more"), "injected_total")
    if part == UPDATE:
        biases = of("Mul", wide(BIASES), "injected_unit", "injected_bias")
        total = of("Add", total, biases, "injected_biased")
    nodes.append(helper.make_node("Cast", [total], list(node.output), to=dtype.elem_type))
    place = list(model.graph.node).index(node)
    del model.graph.node[place]
    for new in reversed(nodes):
        model.graph.node.insert(place, new)


@dataclass
class Layer:
    """One layer of a bundle, and what validation fed it alone: inputs of isolated runs on text."""

    block: Block
    seen: list[Observation]
    new_measures: Callable[[], Measures]

    def judged(self, subject: Subject, sizes: Arrays) -> tuple[bool, float]:
        """Whether the layer with a fault, inputs of `inject`, is judged to have one, and how many
        times what is allowed the worst of it is.
        """
        injected = {name: np.rint(size / UNIT).astype(np.int64) for name, size in sizes.items()}
        measures = self.new_measures()
        for seen in self.seen:
            assert seen.inputs is not None
            found = subject.run_block(self.block, seen.inputs | injected)
            for name in seen.tensors["found"]:
                if is_state(name) and "capacity" in STATE_AXES[name.removesuffix("_out")]:
                    length = seen.inputs["hidden"].shape[1]
                    found[name] = written(found[name], seen.inputs["past_lengths"], length)
            measures.add(replace(seen, tensors=seen.tensors | {"found": found}))
        name = self.block.name
        return bool(judge_block(measures, name)), block_severity(measures, name)


def smallest(judged: Callable[[float], tuple[bool, float]], guess: float) -> float:
    """The smallest size that is noticed, to a factor of `CLOSE`: between one that is not and one
    that is, where a straight line between how severe they are crosses the limit.
    """
    below, above = (0.0, 0.0), (math.inf, math.inf)
    size = guess
    while above[0] > CLOSE * below[0]:
        noticed, severity = judged(size)
        if not noticed and size >= MOST:
            return MOST
        if noticed and size <= LEAST:
            return LEAST
        below, above = (below, (size, severity)) if noticed else ((size, severity), above)
        size = min(max(_between(below, above), LEAST), MOST)
    return above[0]


def _between(below: tuple[float, float], above: tuple[float, float]) -> float:
    """Where to look next."""
    (low, less), (high, more) = below, above
    if high == math.inf:
        return low * (max(2.0, 1.1 / less) if less else 2.0)
    if not low:
        return high / (max(2.0, 1.1 * more) if more < math.inf else 10)
    if not less < 1 <= more < math.inf:
        return (low * high) ** 0.5
    # Beyond where the limit is expected, as seen from the nearer end, so that both ends move.
    at = low + (high - low) * (1 - less) / (more - less)
    step = CLOSE**0.4
    at = at * step if at / low < high / at else at / step
    return min(max(at, low * step), high / step)


def guess_of(result: BlockResult) -> tuple[float, float]:
    """A gain of all that the layer adds that is about what is noticed, and the root mean square of
    what it adds.
    """
    of = result.systematic["hidden_out", "prefill"].regressions
    slope = of[UPDATE].slope()
    assert slope is not None
    spread = (of[UPDATE].squared / of[BIAS].squared) ** 0.5
    return STANDARD_ERRORS * slope.uncertainty + 2.0**-24, spread


def sensitivities(
    directory: Path, dtype: str, say: Callable[[str], None]
) -> Iterator[tuple[str, str, float]]:
    """Layer, fault, and the smallest size of it that is noticed, layer by layer.

    Raises
    ------
    ValueError
        If a layer is not within tolerance as it is.
    """
    bundle = Injected.open(directory)
    assert isinstance(bundle, Injected)
    reference = Reference(bundle)
    with (
        tempfile.TemporaryDirectory() as place,
        fitting_threads(bundle),
        closing(_open(Bundle.open(directory), dtype)) as plain,
    ):
        bundle.place = Path(place)
        cases = make_cases(bundle, reference, CaseOptions())
        flows = [start(case) for case in cases]
        kinds = {block.name: block.kind for block in bundle.blocks}

        def new_measures() -> Measures:
            return Measures(bundle.config, dtype, cases, kinds)

        for block in bundle.blocks[:-1]:
            measures, isolated = new_measures(), []
            runners = runners_of(reference, plain, block)
            for seen in walk_block(bundle, block, runners, flows):
                measures.add(seen)
                if seen.mode == "isolated":
                    isolated.append(seen)
            if wrong := judge_block(measures, block.name):
                raise ValueError(f"{block.name}: {wrong[0]}")
            if block.layer is not None:
                layer = Layer(block, isolated, new_measures)
                of = guess_of(measures.results[block.name])
                for fault, size in _of_layer(bundle, layer, *of, dtype):
                    say(f"{block.name}: {fault}: {size:.2e}")
                    yield block.name, fault, size
            plain.release(block)


def _of_layer(
    bundle: Injected, layer: Layer, guess: float, spread: float, dtype: str
) -> Iterator[tuple[str, float]]:
    width, block = bundle.config.hidden_size, layer.block
    one = np.arange(width) == (block.layer or 0) % width
    path = Bundle.graph_path(bundle, block.kind, dtype)
    for part in parts_of(onnx.load(path)):
        bundle.part = part
        # What each fault of size 1 feeds the graph.
        faults: dict[str, Arrays] = {f"gain of {part}": {GAIN: np.ones(1)}}
        if part == UPDATE:
            faults = {
                f"gain of {part}": {GAIN: np.ones(1), BIASES: np.zeros(width)},
                BIAS: {GAIN: np.zeros(1), BIASES: np.full(width, spread)},
                CHANNEL: {GAIN: np.zeros(1), BIASES: spread * one},
            }
        with closing(_open(bundle, dtype)) as subject:
            for fault, unit in faults.items():

                def judged(
                    size: float, unit: Arrays = unit, subject: Subject = subject
                ) -> tuple[bool, float]:
                    return layer.judged(subject, {k: size * v for k, v in unit.items()})

                sizes = [smallest(judged, guess)]
                sizes.append(smallest(lambda x, of=judged: of(-x), sizes[0]))  # type: ignore[misc]
                yield fault, max(sizes)


def _open(bundle: Bundle, dtype: str) -> Subject:
    return open_subject(bundle, default_subject(dtype), dtype)


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", type=Path, nargs="+", help="with their weights inside")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args(arguments)
    print("| dtype | fault | layers | median | worst |")
    print("|---|---|---|---|---|")
    for dtype in options.dtype:
        found: dict[str, list[float]] = {}
        for directory in options.bundles:

            def say(text: str, of: str = f"{directory} in {dtype}") -> None:
                print(f"{of}: {text}", file=sys.stderr, flush=True)

            try:
                for _, fault, size in sensitivities(directory, dtype, say):
                    found.setdefault(fault, []).append(size)
            except ValueError as error:
                print(f"{directory} in {dtype}: without a fault: {error}", file=sys.stderr)
                return 1
        for fault, sizes in found.items():
            print(f"| {dtype} | {fault.replace('_', ' ')} | {len(sizes)} "
                  f"| {statistics.median(sizes):.1e} | {max(sizes):.1e} |", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
