"""An exported graph made ready for TensorRT: axes fixed, function bodies inlined or dropped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import inliner

from glm_trt.model.errors import GlmTrtError
from glm_trt.plugins.common.contract import DOMAIN
from glm_trt.plugins.folders import contract_of

Shape = list[int | str]


@dataclass(frozen=True)
class PreparedGraph:
    """A graph for the parser.

    Attributes
    ----------
    model : serialised.
    open_inputs : input name → shape, for inputs with an axis that is not fixed, given by its name.
    plugins : op type of each node that a plugin has to run.
    """

    model: bytes
    open_inputs: dict[str, Shape]
    plugins: tuple[str, ...]


def prepare_graph(path: Path, sizes: dict[str, int], with_plugins: bool) -> PreparedGraph:
    """The graph with the axes in `sizes` fixed.

    Parameters
    ----------
    path : the ONNX file of a block kind.
    sizes : axis name → size. The capacity must be among them: TensorRT updates a cache in place
        only if its length is static.
    with_plugins : keep the operators of the domain `glm_trt` whole, without their function bodies,
        which TensorRT would prefer to a plugin; else expand them.

    Raises
    ------
    GlmTrtError
        Without plugins, for an operator that ONNX defines.
    """
    model = onnx.load(path)
    for graph_input in model.graph.input:
        for dim in graph_input.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    # Shapes noted by the exporter speak of the axes that are now fixed.
    del model.graph.value_info[:]
    if with_plugins:
        strip_function_bodies(model)
    # TensorRT would expand bodies itself, but under their inner names: two values called `_` then
    # end the build with "duplicate tensor name".
    model = inliner.inline_local_functions(model)
    plugins = tuple(
        node.op_type
        for node in model.graph.node
        if node.domain == DOMAIN or contract_of(node) is not None
    )
    if plugins and not with_plugins:
        raise GlmTrtError(f"TensorRT has {plugins[0]} as a plugin alone: build with plugins")
    return PreparedGraph(model.SerializeToString(), _open_inputs(model.graph), plugins)


def strip_function_bodies(model: onnx.ModelProto) -> None:
    """Drop the model-local functions of the domain `glm_trt`; the nodes that call them stay."""
    kept = [function for function in model.functions if function.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)


def _open_inputs(graph: onnx.GraphProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for graph_input in graph.input:
        dims = graph_input.type.tensor_type.shape.dim
        if any(dim.dim_param for dim in dims):
            found[graph_input.name] = [dim.dim_param or dim.dim_value for dim in dims]
    return found
