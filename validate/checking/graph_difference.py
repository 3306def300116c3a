"""In what the graph of a bundle is not the one that this version exports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

# In texts, in place of the name of a function.
GRAPH = "graph"


@dataclass(frozen=True)
class GraphDifference:
    """One difference.

    Attributes
    ----------
    part : `GRAPH`, or the name of the function in whose body it is.
    what : "node", "inserted", "removed", "order", "initializer", "input", "output", "function",
        "opset" or "other".
    text : what was expected and what was found.
    node : of the bundle's graph, where it is about one; else the one that is lacking.
    """

    part: str
    what: str
    text: str
    node: onnx.NodeProto | None = None


def differences(theirs: onnx.ModelProto, ours: onnx.ModelProto) -> list[GraphDifference]:
    """In what `theirs` is not `ours`, which is as it should be; empty if they are equal."""
    if _bytes(theirs) == _bytes(ours):
        return []
    found = list(_opsets(theirs, ours, GRAPH))
    found += _values("input", theirs.graph.input, ours.graph.input)
    found += _values("output", theirs.graph.output, ours.graph.output)
    found += _initializers(theirs.graph, ours.graph)
    found += _nodes(theirs.graph.node, ours.graph.node, GRAPH)
    found += _functions(theirs, ours)
    return found or [GraphDifference(GRAPH, "other", "in what changes no value: names, notes")]


def _functions(theirs: onnx.ModelProto, ours: onnx.ModelProto) -> Iterator[GraphDifference]:
    given = {f.name: f for f in theirs.functions}
    wanted = {f.name: f for f in ours.functions}
    for name in sorted(wanted.keys() - given.keys()):
        yield GraphDifference(name, "function", f"the function {name} is lacking")
    for name in sorted(given.keys() - wanted.keys()):
        yield GraphDifference(name, "function", f"a function {name} that is not exported")
    for name, body in wanted.items():
        if name not in given or _bytes(given[name]) == _bytes(body):
            continue
        other = given[name]
        found = list(_nodes(other.node, body.node, name))
        for what in ("input", "output", "attribute"):
            expected, there = list(getattr(body, what)), list(getattr(other, what))
            if expected != there:
                text = f"{name}: {what}s: expected {expected}, found {there}"
                found.append(GraphDifference(name, "function", text))
        found += _opsets(other, body, name)
        yield from found or [GraphDifference(name, "other", f"{name}: in what changes no value")]


def inserted_before(
    value: str, known: Iterable[str], theirs: onnx.ModelProto, ours: onnx.ModelProto
) -> list[onnx.NodeProto]:
    """The nodes of `theirs` that `ours` has not, between the values `known` and `value`."""
    makers = {name: node for node in theirs.graph.node for name in node.output}
    _, extra, _ = _match(theirs.graph.node, ours.graph.node)
    behind, waiting, seen = [], [value], set(known)
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        waiting += node.input
        if any(node is other for other in extra):
            behind.append(node)
    return behind


def _bytes(message: Any) -> bytes:
    content: bytes = message.SerializeToString(deterministic=True)
    return content


def _opsets(theirs: Any, ours: Any, part: str) -> Iterator[GraphDifference]:
    given, wanted = ({x.domain or "ai.onnx": x.version for x in m.opset_import}
                     for m in (theirs, ours))  # fmt: skip
    if given != wanted:
        yield GraphDifference(part, "opset", f"opsets: expected {wanted}, found {given}")


def _values(what: str, theirs: Any, ours: Any) -> Iterator[GraphDifference]:
    given, wanted = ({x.name: x for x in values} for values in (theirs, ours))
    for name in sorted(wanted.keys() | given.keys()):
        if name not in given:
            yield GraphDifference(GRAPH, what, f"the {what} {name} is lacking")
        elif name not in wanted:
            yield GraphDifference(GRAPH, what, f"an {what} {name} that is not exported")
        elif _type(given[name]) != _type(wanted[name]):
            text = f"{name}: expected {_type(wanted[name])}, found {_type(given[name])}"
            yield GraphDifference(GRAPH, what, text)
    if [x.name for x in theirs] != [x.name for x in ours] and given.keys() == wanted.keys():
        yield GraphDifference(GRAPH, what, f"the {what}s are in another order")


def _type(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type)} [{', '.join(dims)}]"


def _initializers(theirs: onnx.GraphProto, ours: onnx.GraphProto) -> Iterator[GraphDifference]:
    given, wanted = ({x.name: x for x in g.initializer} for g in (theirs, ours))
    for name in sorted(given.keys() - wanted.keys()):
        text = f"an initializer {name} that is not exported: {_shown(given[name])}"
        yield GraphDifference(GRAPH, "initializer", text, _reader(theirs, name))
    for name, tensor in wanted.items():
        if name not in given:
            text = f"the initializer {name} is lacking"
            yield GraphDifference(GRAPH, "initializer", text, _reader(ours, name))
        elif (how := _unlike(given[name], tensor)) is not None:
            yield GraphDifference(GRAPH, "initializer", f"{name}: {how}", _reader(theirs, name))


def _reader(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    return next((node for node in graph.node if name in node.input), None)


def _unlike(theirs: onnx.TensorProto, ours: onnx.TensorProto) -> str | None:
    """How two tensors differ; None where each element has the same bits."""
    there, wanted = numpy_helper.to_array(theirs), numpy_helper.to_array(ours)
    if (there.shape, theirs.data_type) != (wanted.shape, ours.data_type):
        return f"expected {_shown(ours)}, found {_shown(theirs)}"
    flat = [np.ascontiguousarray(x).reshape(-1) for x in (there, wanted)]
    bits = [x.view(np.uint8).reshape(len(x), -1) for x in flat]
    unlike = np.flatnonzero((bits[0] != bits[1]).any(-1))
    if not len(unlike):
        return None
    at = [int(i) for i in np.unravel_index(unlike[0], there.shape)]
    return (f"{len(unlike)} of {len(flat[0])} values differ, first at {at}: expected "
            f"{flat[1][unlike[0]]}, found {flat[0][unlike[0]]}")  # fmt: skip


def _shown(tensor: onnx.TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    text = f"{onnx.TensorProto.DataType.Name(tensor.data_type)} {list(array.shape)}"
    return f"{text} {array.item()}" if array.size == 1 else text


def _nodes(
    theirs: Sequence[onnx.NodeProto], ours: Sequence[onnx.NodeProto], part: str
) -> Iterator[GraphDifference]:
    pairs, extra, lacking = _match(theirs, ours)
    for node in extra:
        text = f"{_named(node)} is not exported: it makes {', '.join(node.output)}"
        yield GraphDifference(part, "inserted", text, node)
    for node in lacking:
        text = f"{_named(node)} is lacking, which makes {', '.join(node.output)}"
        yield GraphDifference(part, "removed", text, node)
    for node, wanted in pairs:
        for text in _changes(node, wanted):
            yield GraphDifference(part, "node", f"{_named(node)}: {text}", node)
    order = {id(wanted): i for i, wanted in enumerate(ours)}
    places = [order[id(wanted)] for _, wanted in pairs]
    if places != sorted(places):
        yield GraphDifference(part, "order", "the nodes are in another order")


def _match(
    theirs: Sequence[onnx.NodeProto], ours: Sequence[onnx.NodeProto]
) -> tuple[list[tuple[onnx.NodeProto, onnx.NodeProto]], list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Nodes of both that are the same one, those that only theirs has, and only ours.

    The same are: a node of the same type with the same outputs; else one of the same type with the
    same name, or the same inputs, whose output was given another name; else one that makes the same
    values by another operator from the same inputs.
    """
    keys = [
        lambda node: (node.op_type, node.domain, *node.output),
        lambda node: (node.op_type, node.domain, "name", node.name) if node.name else None,
        lambda node: (node.op_type, node.domain, "inputs", *node.input) if node.input else None,
        lambda node: ("outputs", *node.output, "inputs", *node.input),
    ]
    pairs = []
    left, wanted = list(theirs), list(ours)
    for key in keys:
        by_key: dict[Any, list[onnx.NodeProto]] = {}
        for node in left:
            by_key.setdefault(key(node), []).append(node)
        remaining = []
        for node in wanted:
            found = by_key.get(key(node)) if key(node) is not None else None
            if found:
                pairs.append((found.pop(0), node))
            else:
                remaining.append(node)
        taken = {id(node) for node, _ in pairs}
        left, wanted = [node for node in left if id(node) not in taken], remaining
    place = {id(node): i for i, node in enumerate(theirs)}
    return sorted(pairs, key=lambda pair: place[id(pair[0])]), left, wanted


def _changes(node: onnx.NodeProto, wanted: onnx.NodeProto) -> Iterator[str]:
    if (node.op_type, node.domain) != (wanted.op_type, wanted.domain):
        yield f"expected {wanted.op_type}"
    for what in ("input", "output"):
        there, expected = list(getattr(node, what)), list(getattr(wanted, what))
        if there == expected:
            continue
        if len(there) != len(expected):
            yield f"{what}s: expected {expected}, found {there}"
            continue
        for i, (a, b) in enumerate(zip(there, expected, strict=True)):
            if a != b:
                yield f"{what} {i}: expected {b or 'none'}, found {a or 'none'}"
    given, right = ({a.name: a for a in n.attribute} for n in (node, wanted))
    for name in sorted(given.keys() | right.keys()):
        one, other = given.get(name), right.get(name)
        if one is None or other is None or _bytes(one) != _bytes(other):
            yield f"{name}: expected {_attribute(other)}, found {_attribute(one)}"


def _attribute(attribute: onnx.AttributeProto | None) -> str:
    if attribute is None:
        return "none"
    if attribute.ref_attr_name:
        return f"the attribute {attribute.ref_attr_name}"
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _shown(value)
    if isinstance(value, float):
        return str(np.float32(value))  # in as many digits as it has
    return value.decode() if isinstance(value, bytes) else str(value)


def _named(node: onnx.NodeProto) -> str:
    return f"{node.op_type} ({node.name})" if node.name else node.op_type
