"""Which kernels the engines of a bundle need: from its graphs and profiles, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from glm_trt.model.errors import BundleError
from glm_trt.plugins.common.bounds import UNBOUNDED, Bounds, bounds
from glm_trt.plugins.common.contract import DOMAIN
from glm_trt.plugins.common.selection import (
    Selection,
    TensorRange,
    Use,
    make_selection,
    target_for,
)
from glm_trt.plugins.folders import contract_of

_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16", onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.INT32: "int32", onnx.TensorProto.INT64: "int64",
}  # fmt: skip
Profile = Mapping[str, Sequence[int]]  # axis → min, opt, max


def needed_kernels(
    graphs: Iterable[Path], profiles: Mapping[str, Profile], targets: Iterable[str]
) -> Selection:
    """The kernels that engines of these graphs, profiles and targets may launch.

    Raises
    ------
    BundleError
        If a graph does not say what an operator of ours takes.
    MissingCapabilityError
        If there are no kernels for a target.
    """
    uses = {use for path in graphs for profile in profiles.values() for use in _uses(path, profile)}
    return make_selection({target_for(int(target[2:])) for target in targets}, uses)


def _uses(path: Path, profile: Profile) -> Iterator[Use]:
    graph = onnx.load(path).graph
    values = {v.name: v for v in (*graph.value_info, *graph.output, *graph.input)}
    symbols = {axis: (sizes[0], sizes[-1]) for axis, sizes in profile.items()}
    # Where the tokens of all sequences are packed.
    symbols["tokens"] = bounds("batch * sequence", symbols)
    for node in graph.node:
        if node.domain != DOMAIN and contract_of(node) is None:
            continue
        inputs = []
        for name in node.input:
            if name and name not in values:
                raise BundleError(f"{path}: {name}: no shape is noted, as {node.op_type} needs it")
            inputs.append(_range(values[name], symbols) if name else None)
        yield Use(node.op_type, tuple(inputs), _attributes(node))


def _range(value: onnx.ValueInfoProto, symbols: Mapping[str, Bounds]) -> TensorRange:
    tensor = value.type.tensor_type
    axes = tuple(
        _axis(dim.dim_param, symbols) if dim.dim_param else (dim.dim_value, dim.dim_value)
        for dim in tensor.shape.dim
    )
    return TensorRange(_DTYPES.get(tensor.elem_type, "another dtype"), axes)


def _axis(expression: str, symbols: Mapping[str, Bounds]) -> Bounds:
    """The exporter writes sizes that follow from others as SymPy does: `Min(64, s0)`."""
    written = expression.replace("Min(", "min(").replace("Max(", "max(")
    try:
        low, high = bounds(written, symbols)
    except (KeyError, ValueError, SyntaxError):
        return UNBOUNDED  # any size: kernels that are not needed do no harm
    return max(low, 0), max(high, 0)


def _attributes(node: onnx.NodeProto) -> tuple[tuple[str, int | str], ...]:
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            found[attribute.name] = value.decode()
        elif isinstance(value, int):
            found[attribute.name] = value
    return tuple(sorted(found.items()))
