"""Which onnx a graph needs: packages beside ours may hold an older one in the environment."""

from __future__ import annotations

import onnx

from glm_trt.model.errors import MissingCapabilityError

# Opset of ai.onnx → the release of onnx that brought it; an older onnx cannot say it itself.
RELEASES = {24: "1.19", 25: "1.20", 26: "1.21", 27: "1.22"}


def require_opset(model: onnx.ModelProto, what: str) -> None:
    """Raise unless the onnx that is installed knows the opset of `model`.

    Parameters
    ----------
    what : what the graph is of, for the message.

    Raises
    ------
    MissingCapabilityError
        With the release that is needed and the one that was found.
    """
    needed = next(entry.version for entry in model.opset_import if entry.domain == "")
    known = onnx.defs.onnx_opset_version()
    if needed > known:
        release = RELEASES[needed]
        raise MissingCapabilityError(
            f"{what}: its operators are of ai.onnx opset {needed}: needs onnx {release} or newer, "
            f"found onnx {onnx.__version__} (opset {known}): pip install 'onnx>={release}'"
        )
