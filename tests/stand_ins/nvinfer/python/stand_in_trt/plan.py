"""Plans: a graph cut into parts, with the shapes that its values have at both ends of a profile.

Parts of standard operators are run on zeros, as shapes are known then, whatever they depend on; a
plugin is asked. Scratch holds the values that are neither inputs nor outputs, each in a place of
its own, and behind them the largest workspace that plugins asked for.
"""

from __future__ import annotations

import ctypes
import json
import struct
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from stand_in_trt.enums import NUMPY, DataType, data_type
from stand_in_trt.partition import Part, aliases, partition, space_of, used_by
from stand_in_trt.runtime import IPluginRegistry

MAGIC = b"glm-trt stand-in plan 1\n"
ALIGNMENT = 256
# nvinfer1::PluginFieldType, by the kind of an attribute.
_FIELDS: dict[int, tuple[int, Any]] = {
    onnx.AttributeProto.INT: (5, lambda x: struct.pack("<i", x.i)),
    onnx.AttributeProto.INTS: (5, lambda x: struct.pack(f"<{len(x.ints)}i", *x.ints)),
    onnx.AttributeProto.FLOAT: (1, lambda x: struct.pack("<f", x.f)),
    onnx.AttributeProto.FLOATS: (1, lambda x: struct.pack(f"<{len(x.floats)}f", *x.floats)),
    onnx.AttributeProto.STRING: (6, lambda x: bytes(x.s)),
}
Shape = tuple[int, ...]
Ranges = dict[str, tuple[Shape, Shape, Shape]]
Values = dict[str, np.ndarray[Any, Any]]  # made from zeros


class Refused(Exception):
    """TensorRT would build no plan of it."""


def make_plan(
    model: onnx.ModelProto, profiles: list[Ranges], registry: IPluginRegistry, core: Any,
    of: tuple[str, str],
) -> bytes:  # fmt: skip
    """The plan of a graph.

    Parameters
    ----------
    profiles : input → least, best, largest shape.
    registry : with the plugins; of `core`, the library.
    of : flavour and version.

    Raises
    ------
    Refused
        If a plugin refuses its inputs, an open input lacks a range, or an operator does not run.
    """
    parts, models = partition(model.graph), b""
    ends: list[list[Values]] = [[_inputs(model, x, i) for i in (0, 2)] for x in profiles]
    nodes: list[dict[str, Any]] = []
    workspaces: list[list[int]] = []
    for part in parts:
        node: dict[str, Any] = {"inputs": part.inputs, "outputs": part.outputs}
        if part.is_plugin:
            fields, needed = _ask_plugin(part, ends, registry, core)
            node |= {"plugin": part.nodes[0].op_type, "version": "1",
                     "namespace": space_of(part.nodes[0]), "fields": fields}  # fmt: skip
        else:
            segment = _segment(model, part, ends[0][0]).SerializeToString()
            _run_on_zeros(segment, part, ends)
            node |= {"offset": len(models), "size": len(segment)}
            models += segment
            needed = [0] * len(profiles)
        nodes.append(node)
        workspaces.append(needed)
    io = {x.name for x in (*model.graph.input, *model.graph.output)}
    header = {
        "flavour": of[0], "version": of[1], "io": _io(model, ends), "nodes": nodes,
        "profiles": [
            _profile(ranges, pair, io, [x[i] for x in workspaces])
            for i, (ranges, pair) in enumerate(zip(profiles, ends, strict=True))
        ],
    }  # fmt: skip
    text = json.dumps(header).encode()
    return MAGIC + struct.pack("<Q", len(text)) + text + models


def _inputs(model: onnx.ModelProto, ranges: Ranges, end: int) -> Values:
    found = {}
    for x in model.graph.input:
        shape = _shape(x)
        if -1 in shape and x.name not in ranges:
            raise Refused(f"{x.name}: dynamic input is missing dimensions in a profile")
        dtype = data_type(onnx.helper.tensor_dtype_to_np_dtype(x.type.tensor_type.elem_type))
        found[x.name] = _zeros(dtype, ranges[x.name][end] if x.name in ranges else shape)
    return found


def _zeros(dtype: DataType, shape: Shape) -> np.ndarray[Any, Any]:
    return np.zeros(shape, NUMPY[dtype])


def _shape(x: onnx.ValueInfoProto) -> Shape:
    dims = x.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)


def _segment(model: onnx.ModelProto, part: Part, values: Values) -> onnx.ModelProto:
    """The part as a model of its own, with whatever rank and type its inputs have."""
    used = {name for node in part.nodes for name in used_by(node)} - {*part.inputs}
    graph = onnx.helper.make_graph(
        part.nodes, "segment",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype),
                [None] * values[name].ndim,
            )
            for name in part.inputs
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in part.outputs],
        [x for x in model.graph.initializer if x.name in used],
    )  # fmt: skip
    made = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    made.ir_version = model.ir_version
    return made


def _run_on_zeros(segment: bytes, part: Part, ends: list[list[Values]]) -> None:
    """Add what the part makes at each end of each profile."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    try:
        session = ort.InferenceSession(segment, options, providers=["CPUExecutionProvider"])
        for values in (x for pair in ends for x in pair):
            feeds = {name: values[name] for name in part.inputs}
            results = session.run(list(part.outputs), feeds)
            values.update(zip(part.outputs, results, strict=True))
    except Exception as error:  # onnxruntime's are of many classes
        raise Refused(str(error)) from error


def _ask_plugin(
    part: Part, ends: list[list[Values]], registry: IPluginRegistry, core: Any
) -> tuple[list[dict[str, Any]], list[int]]:
    """Its fields as serialised, and bytes of workspace by profile; adds what it makes."""
    attributes = []
    for x in part.nodes[0].attribute:
        if x.type not in _FIELDS:
            raise Refused(f"{part.nodes[0].op_type}: attribute {x.name} of a kind that none has")
        kind, packed = _FIELDS[x.type]
        attributes.append({"name": x.name, "type": kind, "data": packed(x).hex()})
    first = ends[0][0]
    request = {
        "plugin": part.nodes[0].op_type, "version": "1", "namespace": space_of(part.nodes[0]),
        "attributes": attributes, "types": [data_type(first[name].dtype) for name in part.inputs],
        "profiles": [
            {"least": [low[name].shape for name in part.inputs],
             "most": [high[name].shape for name in part.inputs]}
            for low, high in ends
        ],
    }  # fmt: skip
    reply = ctypes.create_string_buffer(1 << 20)
    if core.standInBuildPlugin(registry._handle, json.dumps(request).encode(), reply, len(reply)):
        raise Refused(f"{part.nodes[0].op_type}: {reply.value.decode()}")
    answer = json.loads(reply.value)
    for pair, profile in zip(ends, answer["profiles"], strict=True):
        for values, end in zip(pair, ("least", "most"), strict=True):
            for name, dtype, shape in zip(part.outputs, answer["types"], profile[end], strict=True):
                values[name] = _zeros(DataType(dtype), shape)
    return answer["fields"], [profile["workspace"] for profile in answer["profiles"]]


def _io(model: onnx.ModelProto, ends: list[list[Values]]) -> list[dict[str, Any]]:
    in_place = aliases(model.graph)
    found = []
    for x in model.graph.input:
        dtype = data_type(ends[0][0][x.name].dtype)
        found.append({"name": x.name, "is_input": True, "dtype": dtype, "shape": _shape(x)})
    for x in model.graph.output:
        shapes = [values[x.name].shape for pair in ends for values in pair]
        shape = [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True)]
        dtype = data_type(ends[0][0][x.name].dtype)
        found.append({"name": x.name, "is_input": False, "dtype": dtype,
                      "shape": shape, "aliased_to": in_place.get(x.name, "")})  # fmt: skip
    return found


def _profile(
    ranges: Ranges, pair: list[Values], io: set[str], workspaces: list[int]
) -> dict[str, Any]:
    low, high = pair
    # Segments take some too, more on a larger profile.
    at = ALIGNMENT * (1 + sum(max(high[name].shape) for name in ranges))
    values = {}
    for name, most in high.items():
        values[name] = {"dtype": data_type(most.dtype), "least": low[name].shape,
                        "most": most.shape, "offset": at}  # fmt: skip
        if name not in io:
            at += -(-most.nbytes // ALIGNMENT) * ALIGNMENT
    scratch = at + max(workspaces, default=0)
    return {"shapes": ranges, "values": values, "workspaces": workspaces, "workspace_offset": at,
            "scratch": scratch}  # fmt: skip
