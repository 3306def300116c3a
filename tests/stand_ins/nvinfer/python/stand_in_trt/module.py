"""What a module of a flavour has."""

from __future__ import annotations

from typing import Any

from stand_in_trt import builder, enums, runtime
from stand_in_trt.core import load

CLASSES = (
    runtime.Logger, runtime.IPluginRegistry, runtime.IPluginCreatorV3One,
    runtime.IExecutionContext, builder.INetworkDefinition, builder.OnnxParser,
    builder.IOptimizationProfile, builder.ILayer, enums.DataType, enums.TensorIOMode,
    enums.ExecutionContextAllocationStrategy, enums.NetworkDefinitionCreationFlag,
    enums.LayerType, enums.BuilderFlag,
)  # fmt: skip
RTX_CLASSES = (
    runtime.IRuntimeCache, enums.ComputeCapability,
    enums.DynamicShapesKernelSpecializationStrategy, enums.CudaGraphStrategy,
)  # fmt: skip
DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8",
          "int32": "INT32", "int64": "INT64", "bool": "BOOL"}  # fmt: skip


def names_of(flavour: str, version: str, library: str) -> dict[str, Any]:
    """The names of the module `flavour`, over the library of that name."""
    core, is_rtx = load(library), flavour == "tensorrt_rtx"
    engine = type("ICudaEngine", (runtime.ICudaEngine,), {"_is_rtx": is_rtx})
    names: dict[str, Any] = {x.__name__: x for x in CLASSES + (RTX_CLASSES if is_rtx else ())}
    names |= {name: enums.DataType[of] for name, of in DTYPES.items()}
    return names | {
        "__version__": version,
        "nptype": enums.nptype,
        "ICudaEngine": engine,
        "IRuntimeConfig": runtime.RtxRuntimeConfig if is_rtx else runtime.IRuntimeConfig,
        "IBuilderConfig": builder.RtxBuilderConfig if is_rtx else builder.IBuilderConfig,
        "Runtime": type("Runtime", (runtime.Runtime,), {"_core": core, "_engine": engine}),
        "Builder": type(
            "Builder", (builder.Builder,), {"_core": core, "_of": (flavour, version)}
        ),
    }  # fmt: skip
