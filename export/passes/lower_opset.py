"""The lowest opset that a graph can declare, so that the most tools read it."""

from __future__ import annotations

import onnx

from glm_trt.export.onnx_version import RELEASES
from glm_trt.export.passes.nodes import every_node

# The opset by whose definitions nodes are written: the last to which torch's exporter converts.
# Function bodies are of 23, and what they use has only gained dtypes that they do not meet.
WRITTEN_FOR = 24


def lower_opset(model: onnx.ModelProto) -> None:
    """Declare the lowest opset of ai.onnx that means what the nodes were written to mean.

    1. A node of an operator that opset `WRITTEN_FOR` has needs the opset that brought the
       definition in force there: from that to `WRITTEN_FOR` its meaning is one.
    2. A node of an operator that came later needs the opset that brought it.
    3. A node of an operator that the installed onnx does not know needs the newest of `RELEASES`.
    4. The graph and its function bodies declare the largest of these.
    """
    standard = {node.op_type for node in every_node(model) if not node.domain}
    lowest = max(map(_needs, standard), default=1)
    for imports in (model.opset_import, *(function.opset_import for function in model.functions)):
        for entry in imports:
            if not entry.domain:
                entry.version = lowest


def _needs(op_type: str) -> int:
    try:
        return onnx.defs.get_schema(op_type, WRITTEN_FOR, "").since_version
    except onnx.defs.SchemaError:  # of a later opset, or of none that is known here
        known = onnx.defs.get_all_schemas_with_history()
        since = [s.since_version for s in known if not s.domain and s.name == op_type]
        return min(since, default=max(RELEASES))
