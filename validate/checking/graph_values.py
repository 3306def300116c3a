"""Whether two graphs of a kind of block, or two bodies of a function, make the same values.

Both run on the same inputs, which no text gives: rows with pasts of their own, a single token, the
last position, numbers of both signs, large ones. In float64, where casts between floating dtypes
change nothing, what is left of a harmless difference is a few roundings of float64. In the graph's
own dtype the casts count, and the yardstick is that of a validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from onnx.inliner import inline_local_functions

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.errors import BlockError, GlmTrtError
from glm_trt.plugins.folders import CONTRACTS, part_of
from glm_trt.validate.judging.choices import CHOSEN_BY, compare_choices
from glm_trt.validate.judging.compare import Choices
from glm_trt.validate.judging.limits import explain, pair_entry
from glm_trt.validate.judging.measure import Pair
from glm_trt.validate.running.graph_evaluator import GraphEvaluator
from glm_trt.validate.running.reference import RecordingOperators, Reference, as_array, as_tensor

Array = NDArray[Any]
Arrays = dict[str, Array]
# Of the relative L2 difference of an output in float64, where a rounding is 1.1e-16: blocks are
# ill-conditioned by factors up to 1e3, single operators hardly.
ALIKE, ALIKE_OPERATOR = 1e-12, 1e-13
ALIKE_FLOAT32 = 4 * 2.0**-24
# Bytes of a state that reaches to the last position.
FAR_BYTES = 64 << 20
LARGE = 1e5
BEYOND = 8
SEED = 20


def graph_problem(
    bundle: Bundle,
    block: Block,
    reference: Reference,
    theirs: onnx.ModelProto,
    ours: onnx.ModelProto,
    dtype: str,
) -> str | None:
    """What `theirs`, in `dtype`, makes otherwise of inputs of `block` than `ours`; None if nothing.

    Function bodies are not looked at: see `body_problem`.
    """
    weights = {name: reference.weights(block, name) for name in ("float64", dtype)}
    wanted = [x.name for x in ours.graph.input if x.name not in weights[dtype]]
    operators = [RecordingOperators(), RecordingOperators()]
    exact = [GraphEvaluator(theirs, exact=True), GraphEvaluator(ours, operators[0], exact=True)]
    rounded = [GraphEvaluator(theirs), GraphEvaluator(ours, operators[1])]

    def run(evaluator: GraphEvaluator, inputs: Arrays, dtype: str) -> Arrays:
        values = {name: as_tensor(name, array, dtype) for name, array in inputs.items()}
        return {n: as_array(x) for n, x in evaluator.run(values | weights[dtype]).items()}

    pooled = _Pooled(bundle, dtype)
    for place, probe in probes(bundle, block, dtype):
        missing = [name for name in wanted if name not in probe]
        if missing:
            raise GlmTrtError(f"{block.name}: no probe has a value for {', '.join(missing)}")
        inputs = {name: probe[name] for name in wanted}
        right = run(exact[1], inputs, "float64")
        of_dtype = run(rounded[1], inputs, dtype)
        try:
            found = run(exact[0], inputs, "float64")
            in_dtype = run(rounded[0], inputs, dtype)
        except (GlmTrtError, KeyError) as error:
            return f"cannot be run on a {place}: {error}"
        if problem := _unlike(found, right, ALIKE):
            return f"{problem}, on a {place}"
        chains = {"exact": right, "rounded": of_dtype, "found": in_dtype}
        if problem := pooled.add(chains, operators, place):
            return problem
    return pooled.problem()


class _Pooled:
    """Outputs in the graph's own dtype, over all probes."""

    def __init__(self, bundle: Bundle, dtype: str) -> None:
        self.config, self.dtype = bundle.config, dtype
        self.pairs: dict[str, Pair] = {}
        self.choices: dict[str, Choices] = {}

    def add(
        self, chains: dict[str, Arrays], operators: list[RecordingOperators], place: str
    ) -> str | None:
        """Pool one probe; what is wrong by itself."""
        for name, array in chains["rounded"].items():
            there = chains["found"].get(name)
            if there is None or there.shape != array.shape:
                text = "missing" if there is None else f"of shape {list(there.shape)}"
                return f"{name}: expected shape {list(array.shape)}, found it {text}, on a {place}"
        rows = None
        scores = [{n: as_array(x) for n, x in of.scores.items()} for of in operators]
        for name in CHOSEN_BY:
            if name in chains["exact"]:
                pool = self.choices.setdefault(name, Choices())
                equal = compare_choices(
                    self.config, name, chains, (scores[0], scores[1]), pool, place
                )
                shape = chains["exact"]["hidden_out"].shape[:-1]
                rows = equal.reshape(shape) if rows is None else rows & equal.reshape(shape)
        for name in (name for name in chains["exact"] if name not in CHOSEN_BY):
            of = {chain: outputs[name] for chain, outputs in chains.items()}
            by_token = rows is not None and of["exact"].shape[:-1] == rows.shape
            pair = self.pairs.setdefault(name, Pair.of(self.dtype))
            if np.isfinite(of["exact"]).all() and np.isfinite(of["rounded"]).all():
                pair.add(of, place, rows if by_token else None)
            elif not np.array_equal(np.isfinite(of["found"]), np.isfinite(of["rounded"])):
                return f"{name}: not finite where {self.dtype} is, on a {place}"
        return None

    def problem(self) -> str | None:
        """What is wrong with all probes together."""
        for name, choices in self.choices.items():
            if choices.wrong:
                return f"{name}: {choices.wrong} wrong; first: {choices.first_wrong}"
        for name, pair in self.pairs.items():
            entry = pair_entry(pair, self.dtype)
            if not entry["ok"]:
                return f"{name}: {explain(entry)}"
        return None


def probes(bundle: Bundle, block: Block, dtype: str) -> Iterator[tuple[str, Arrays]]:
    """Inputs of a block by name, more than it takes, and what to call them."""
    config, generator = bundle.config, np.random.default_rng(SEED)
    longest = bundle.max_seq_len

    def made(pasts: list[int], length: int, size: float = 1.0) -> Arrays:
        rows, past = len(pasts), np.array(pasts)
        angles = generator.uniform(0, 6, (rows, length, config.qk_rope_head_dim // 2))
        hidden = generator.standard_normal((2, rows, length, config.hidden_size)) * size
        lengths = np.full(rows, length)
        lengths[-1] -= rows > 1
        visible = past[:, None] + np.arange(length) + 1
        selected = min(config.index_topk, int(visible.max()))
        chosen = np.sort(generator.random((rows, length, int(visible.max()))).argsort(-1))
        chosen = np.where(chosen < visible[..., None], chosen, -1)[..., :selected]
        states = {
            spec.name: generator.standard_normal(spec.shape(rows, max(pasts) + length))
            for spec in bundle.states(block)
        }
        return {
            "hidden": hidden[0], "embedded": hidden[1], "cos": np.cos(angles),
            "sin": np.sin(angles), "past_lengths": past, "lengths": lengths,
            "input_ids": generator.integers(0, config.vocab_size, (rows, length)),
            "shared_indices": chosen.astype(np.int32), **states,
        }  # fmt: skip

    past = min(config.index_topk + BEYOND, longest - 3)
    if past > 0:
        yield "ragged pass", made([past, past // 2, 0], 3)
        yield "single token", made([past], 1)
    yield "prefill", made([0, 0], min(16, longest))
    yield "last position", made([_far(bundle, block)], 1)
    large = LARGE if dtype != "float16" else LARGE / 100
    yield "prefill of large numbers", made([0], min(4, longest), large)
    nothing = made([0], min(3, longest), 0.0)
    yield "prefill of zeros", nothing | {s.name: nothing[s.name] * 0 for s in bundle.states(block)}


def _far(bundle: Bundle, block: Block) -> int:
    """The last position of the range, or of as much of it as a state of `FAR_BYTES` holds."""
    widths = [int(np.prod(spec.shape(1, 1))) for spec in bundle.states(block) if spec.has_capacity]
    room = min((FAR_BYTES // (8 * width) for width in widths), default=bundle.max_seq_len)
    return min(bundle.max_seq_len, room) - 1


def _unlike(found: Arrays, expected: Arrays, alike: float) -> str | None:
    """The first output that differs, and by how much."""
    for name, wanted in expected.items():
        array = found.get(name)
        if array is None or array.shape != wanted.shape:
            there = "none" if array is None else list(array.shape)
            return f"{name}: expected shape {list(wanted.shape)}, found {there}"
        if wanted.dtype.kind in "iub":
            if not np.array_equal(array, wanted):
                at = tuple(int(i) for i in np.argwhere(array != wanted)[0])
                return f"{name} at {list(at)}: expected {wanted[at]}, found {array[at]}"
            continue
        if wanted.dtype == np.float32:  # angles are, in any dtype
            alike = max(alike, ALIKE_FLOAT32)
        wanted, array = wanted.astype(np.float64), array.astype(np.float64)
        same = (wanted == array) | (np.isnan(wanted) & np.isnan(array))
        if same.all():
            continue
        difference = np.where(same, 0.0, np.abs(array - wanted))
        size = float(np.sqrt(np.square(np.where(np.isfinite(wanted), wanted, 0.0)).sum()))
        error = float(np.sqrt(np.square(difference).sum())) / (size or 1.0)
        if not error <= alike:
            at = tuple(int(i) for i in np.argwhere(~same)[0])
            if np.isfinite(difference).all():
                at = tuple(int(i) for i in np.unravel_index(difference.argmax(), wanted.shape))
            return (f"{name} differs by {error:.1e} in float64, most at {list(at)}: expected "
                    f"{wanted[at]:.9g}, found {array[at]:.9g}")  # fmt: skip
    return None


def body_problem(theirs: onnx.FunctionProto, ours: onnx.FunctionProto) -> str | None:
    """What the body `theirs` makes otherwise of its operator's own test cases; None if nothing.

    Each as it is written, in float64 and in float32.
    """
    operator = next(name for name, contract in CONTRACTS.items() if contract.name == ours.name)
    for case in part_of(operator, "cases").CASES:
        tensors = case.make(torch.Generator().manual_seed(SEED), torch.float32)
        names = [f"input_{i}" if x is not None else "" for i, x in enumerate(tensors)]
        inputs = {n: x for n, x in zip(names, tensors, strict=True) if x is not None}
        try:
            right, of_dtype = (
                _run_body(ours, names, inputs, case.attributes, exact) for exact in (True, False)
            )
        except BlockError:  # a case of the kernels alone, as two best of a group of one are
            continue
        try:
            found, in_dtype = (
                _run_body(theirs, names, inputs, case.attributes, exact) for exact in (True, False)
            )
        except (GlmTrtError, KeyError, ValueError) as error:
            return f"cannot be run, case {case.name!r}: {error}"
        if problem := _unlike(found, right, ALIKE_OPERATOR):
            return f"{problem}, case {case.name!r}"
        for name, array in right.items():
            pair = Pair.of("float32")
            of = {"exact": array, "rounded": of_dtype[name], "found": in_dtype[name]}
            if array.dtype.kind in "iub" or not np.isfinite(array).all():
                if not np.array_equal(of["rounded"], of["found"], equal_nan=True):
                    return f"{name}: other values in float32, case {case.name!r}"
                continue
            pair.add({c: x.reshape(-1, x.shape[-1]) for c, x in of.items()}, case.name)
            entry = pair_entry(pair, "float32")
            if not entry["ok"]:
                return f"{name}: {explain(entry)}"
    return None


def _run_body(
    body: onnx.FunctionProto, names: list[str], inputs: Mapping[str, torch.Tensor],
    attributes: dict[str, Any], exact: bool,
) -> Arrays:  # fmt: skip
    """The outputs of a function on `inputs`, node by node."""
    opset = max(entry.version for entry in body.opset_import if not entry.domain)
    results = [f"output_{i}" for i in range(len(body.output))]
    node = helper.make_node(body.name, names, results, domain=body.domain, **attributes)
    graph = helper.make_graph(
        [node], "body",
        [helper.make_tensor_value_info(n, _ELEMENT[x.dtype], x.shape) for n, x in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in results],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(body.domain, 1)]
    model = helper.make_model(graph, functions=[body], opset_imports=imports)
    inlined = inline_local_functions(model)
    evaluator = GraphEvaluator(inlined, exact=exact)
    wide = {
        name: x.double() if exact and x.is_floating_point() else x for name, x in inputs.items()
    }
    return {name: as_array(x) for name, x in evaluator.run(wide).items()}


_ELEMENT = {
    torch.float32: onnx.TensorProto.FLOAT, torch.int8: onnx.TensorProto.INT8,
    torch.int32: onnx.TensorProto.INT32, torch.int64: onnx.TensorProto.INT64,
}  # fmt: skip
