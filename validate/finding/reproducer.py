"""A small input on which an operator is wrong, to attach to a bug report."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES, bound_tensor
from glm_trt.model.errors import BundleError
from glm_trt.model.files import explain
from glm_trt.validate.finding.operator_search import Arrays, Check, Search

Array = NDArray[Any]
# Weights above that are named, not copied.
MOST_BYTES = 1 << 26
# Inputs with an axis of tokens, and on which axis it is.
_BY_TOKEN = {"input_ids": 1, "hidden": 1, "embedded": 1, "cos": 1, "sin": 1, "shared_indices": 1}


@dataclass(frozen=True)
class Small:
    """The smallest inputs that were found, and the search on them (None: nothing smaller)."""

    inputs: Arrays
    search: Search | None


@dataclass(frozen=True)
class Reproducer:
    """What is written: inputs of the block in `dtype`, and what a search knew on them."""

    bundle: Bundle
    block: Block
    dtype: str
    inputs: Arrays
    search: Search


def shrink(
    bundle: Bundle,
    block: Block,
    inputs: Arrays,
    still_bad: Callable[[Arrays], Search | None],
) -> Small:
    """Take away rows, tokens and cached positions as long as the same value stays bad."""
    smallest = Small(inputs, None)
    shrunk = True
    while shrunk:
        shrunk = False
        for candidate in _smaller(bundle, block, smallest.inputs):
            if (search := still_bad(candidate)) is not None:
                smallest, shrunk = Small(candidate, search), True
                break
    return smallest


def _smaller(bundle: Bundle, block: Block, inputs: Arrays) -> Iterator[Arrays]:
    """Inputs with fewer rows, or half of the tokens, or no room behind the last token."""
    rows = len(next(iter(inputs.values())))
    if rows > 1:
        for row in range(rows):
            yield {name: array[row : row + 1] for name, array in inputs.items()}
    tokens = next(array.shape[1] for name, array in inputs.items() if name in _BY_TOKEN)
    for part in (slice(0, tokens // 2), slice(tokens // 2, tokens)) if tokens > 1 else ():
        cut = {
            name: array[:, part] if name in _BY_TOKEN else array for name, array in inputs.items()
        }
        if "lengths" in inputs:
            count = np.clip(inputs["lengths"] - (part.start or 0), 0, part.stop - part.start)
            cut["lengths"] = count
        yield cut
    caches = [spec.name for spec in bundle.states(block) if spec.has_capacity]
    if caches:
        needed = int(inputs["past_lengths"].max()) + tokens
        if inputs[caches[0]].shape[2] > needed:
            yield inputs | {name: inputs[name][:, :, :needed] for name in caches}


def write_reproducer(
    reproducer: Reproducer, report: dict[str, Any], directory: Path
) -> dict[str, Any]:
    """Write `directory`, which appears whole or not at all; what is in it.

    Raises
    ------
    BundleError
        If it exists and is no reproducer, or cannot be written.
    """
    if directory.exists() and not (directory / "finding.json").is_file():
        raise BundleError(f"{directory}: exists and is not a reproducer")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise BundleError(explain(directory, error)) from error
    try:
        summary = _write(reproducer, report, place)
        if directory.exists():
            shutil.rmtree(directory)
        place.chmod(0o755)  # mkdtemp's own is for its user alone
        place.rename(directory)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return summary | {"directory": str(directory)}


def _write(reproducer: Reproducer, report: dict[str, Any], place: Path) -> dict[str, Any]:
    bad = reproducer.search.bad
    assert bad is not None
    np.savez(place / "block_inputs.npz", allow_pickle=False, **_storable(reproducer.inputs))
    model, feeds, omitted = _operator(reproducer, bad)
    onnx.save(model, place / "operator.onnx")
    np.savez(place / "operator_inputs.npz", allow_pickle=False, **_storable(feeds))
    both = {"expected": bad.expected, "found": bad.found}
    np.savez(place / "values.npz", allow_pickle=False, **_storable(both))
    tokens = next(x.shape[1] for name, x in reproducer.inputs.items() if name in _BY_TOKEN)
    summary = {"tokens": tokens, "bytes": sum(x.nbytes for x in feeds.values()),
               "omitted": omitted, "coordinates": bad.worst.get("coordinates"),
               "expected": bad.worst.get("expected"), "found": bad.worst.get("found")}  # fmt: skip
    finding = report | {"reproducer": summary, "versions": reproducer.bundle.manifest.versions}
    (place / "finding.json").write_text(json.dumps(finding, indent=1) + "\n")
    (place / "reproduce.py").write_text(_SCRIPT)
    (place / "README.md").write_text(_readme(finding, bad))
    return summary


def _operator(reproducer: Reproducer, bad: Check) -> tuple[onnx.ModelProto, Arrays, list[str]]:
    """The bundle's own nodes behind the bad value as a graph, what they are fed, and the weights
    that are too large to go with it.
    """
    bundle, block, known = reproducer.bundle, reproducer.block, reproducer.search.known
    dtype = "float32" if reproducer.dtype == "float64" else reproducer.dtype
    theirs = onnx.load(bundle.graph_path(block.kind, dtype))
    makers = {name: node for node in theirs.graph.node for name in node.output}
    fed = dict(reproducer.inputs)
    bindings = {binding.name: binding for binding in block.bindings}
    constants = {x.name: x for x in theirs.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    feeds: Arrays = {}
    omitted: list[str] = []

    def need(name: str) -> None:
        """Feed a value, or put the node that makes it into the graph first."""
        if not name or name in feeds or name in omitted or name in constants:
            return
        if name in known and name != bad.name:
            feeds[name] = known[name]
        elif name in fed:
            feeds[name] = fed[name]
        elif name in bindings:
            binding = bindings[name]
            if int(np.prod(binding.shape)) * 4 > MOST_BYTES:
                omitted.append(name)
            else:
                narrow = binding.dtype == "int8"
                wanted = None if narrow else binding.dtype or dtype
                feeds[name] = bound_tensor(binding, bundle.weights, wanted)
        elif (node := makers.get(name)) is not None and node not in nodes:
            for other in node.input:
                need(other)
            nodes.append(node)

    need(bad.name)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*theirs.graph.input,
             *theirs.graph.value_info, *theirs.graph.output)}  # fmt: skip

    def described(name: str, array: Array | None) -> onnx.ValueInfoProto:
        """The value's type: the graph's, or that of an array where the graph does not say."""
        if array is None:
            return helper.make_tensor_value_info(name, kinds[name], None)
        kind = kinds.get(name) or helper.np_dtype_to_tensor_dtype(array.dtype)
        return helper.make_tensor_value_info(name, kind, array.shape)

    used = {name for node in nodes for name in node.input}
    inputs = [described(name, feeds.get(name)) for name in (*feeds, *omitted) if name in used]
    graph = helper.make_graph(
        nodes, "operator", inputs, [described(bad.name, bad.found)],
        [constants[name] for name in sorted(used & constants.keys())],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=list(theirs.opset_import))
    model.ir_version = theirs.ir_version
    called = {node.op_type for node in nodes if node.domain}
    model.functions.extend(f for f in theirs.functions if f.name in called)
    return model, {name: feeds[name] for name in feeds if name in used}, omitted


def _storable(arrays: Arrays) -> Any:
    """NumPy's files have no bfloat16; float32 holds each of its values."""
    return {
        name: array.astype(np.float32) if array.dtype == NUMPY_DTYPES["bfloat16"] else array
        for name, array in arrays.items()
    }


def _readme(finding: dict[str, Any], bad: Check) -> str:
    operator = finding["operator"]
    worst = finding["reproducer"]
    region = ", ".join(f"`{node.name}` ({node.op_type})" for node in bad.nodes)
    lines = [
        f"# {operator['op_type']} of {finding['block']} is wrong on {finding['backend']}",
        "",
        f"- operators: {region}; dtype {finding['dtype']}",
        f"- value `{bad.name}`: {bad.problem}",
        f"- worst element {worst['coordinates']}: expected {worst['expected']}, found "
        f"{worst['found']}",
        f"- input: {worst['tokens']} token(s) of `{finding['place']}`",
        f"- versions: {', '.join(f'{k} {v}' for k, v in finding['versions'].items())}",
        "",
        "| file | |",
        "|---|---|",
        "| `operator.onnx` | the bundle's nodes behind the value |",
        "| `operator_inputs.npz` | what they were fed (bfloat16 as float32) |",
        "| `values.npz` | `expected` (float64) and `found` |",
        "| `block_inputs.npz` | the inputs of the whole block |",
        "| `finding.json` | the same as data |",
        "",
        "`python reproduce.py` needs numpy and onnxruntime: it runs `operator.onnx` there and says "
        "whether onnxruntime gives what is expected, what was found, or something else.",
    ]
    if worst["omitted"]:
        lines += ["", f"Too large to go with it: {', '.join(worst['omitted'])}."]
    return "\n".join([*lines, ""])


_SCRIPT = '''"""Run operator.onnx in onnxruntime, and compare with what was expected and found."""

from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).parent
inputs = dict(np.load(here / "operator_inputs.npz"))
try:
    session = onnxruntime.InferenceSession(
        here / "operator.onnx", providers=["CPUExecutionProvider"]
    )
    if missing := {value.name for value in session.get_inputs()} - inputs.keys():
        raise SystemExit(f"not with this reproducer: {', '.join(sorted(missing))}")
    (made,) = session.run(None, inputs)
except Exception as error:  # it has no arithmetic in bfloat16 on the CPU
    raise SystemExit(f"onnxruntime cannot run it: {error}")
values = np.load(here / "values.npz")
expected, found = values["expected"], values["found"]


def distance(other: np.ndarray) -> float:
    return float(np.linalg.norm(made - other) / max(np.linalg.norm(other), 1e-30))


at = np.unravel_index(np.abs(found - expected).argmax(), found.shape)
print(f"at {[int(i) for i in at]}: expected {expected[at]}, found {found[at]}, "
      f"onnxruntime {made[at]}")
print(f"onnxruntime is {distance(expected):.2g} from what is expected, {distance(found):.2g} from "
      "what was found")
'''
