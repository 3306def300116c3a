"""An exported graph made ready for TensorRT's parser: axes fixed, function bodies inlined."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import inliner

# The axes of a block's inputs; an input that is not here is a weight.
AXES: dict[str, tuple[str, ...]] = {
    "input_ids": ("batch", "sequence"),
    "past_lengths": ("batch",),
    "hidden": ("batch", "sequence", "hidden"),
    "cos": ("batch", "sequence", "rotary"),
    "sin": ("batch", "sequence", "rotary"),
    "kv_cache": ("batch", "one", "capacity", "width"),
    "index_keys": ("batch", "one", "capacity", "width"),
    "shared_indices": ("batch", "sequence", "selected"),
}

Shape = list[int | str]


def prepare_graph(path: Path, sizes: dict[str, int]) -> tuple[bytes, dict[str, Shape]]:
    """The graph with the axes in `sizes` fixed, and the inputs that still have an open axis.

    Parameters
    ----------
    path : the ONNX file of a block kind.
    sizes : axis name → size. The capacity must be among them: TensorRT updates a cache in place
        only if its length is static.

    Returns
    -------
    The serialised model, and input name → shape, where an open axis is given by its name.
    """
    model = onnx.load(path)
    for graph_input in model.graph.input:
        dims = graph_input.type.tensor_type.shape.dim
        for dim, axis in zip(dims, AXES.get(graph_input.name, ()), strict=False):
            if dim.dim_param and axis in sizes:
                dim.dim_value = sizes[axis]
    # Shapes noted by the exporter speak of the axes that are now fixed.
    del model.graph.value_info[:]
    # TensorRT would expand the bodies itself, but under their inner names: two values called `_`
    # then end the build with "duplicate tensor name".
    model = inliner.inline_local_functions(model)
    return model.SerializeToString(), _open_inputs(model.graph)


def _open_inputs(graph: onnx.GraphProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for graph_input in graph.input:
        dims = graph_input.type.tensor_type.shape.dim
        axes = AXES.get(graph_input.name, ())
        if any(dim.dim_param for dim in dims):
            if len(axes) != len(dims):
                raise ValueError(f"input {graph_input.name}: open axes that no profile speaks of")
            found[graph_input.name] = [
                axis if dim.dim_param else dim.dim_value
                for dim, axis in zip(dims, axes, strict=True)
            ]
    return found
