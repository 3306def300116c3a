"""What exporting and building need of the machine that does them.

Measured figures, with where they are from; the rest is counted.
"""

from __future__ import annotations

from typing import Any

from glm_trt.engines.planning.weights import Weights
from glm_trt.model.checkpoint.tensors import mtp_layers
from glm_trt.model.config import ModelConfig, block_kind

# docs/measurements.md: bundles of GLM-5.1 and of the hybrid at full size, rounded up.
GRAPH_BYTES = 22_000
BINDINGS_BYTES = 5_200  # of a block, with its entry in the manifest
GRAPH_DTYPES = 2  # float32, and the checkpoint's
EXPORT_HOST_BYTES = 560 * 10**6
# docs/measurements.md: one MoE layer's engine at GLM-5.1's dimensions, and the plugin library.
ENGINE_BYTES = 3_400_000
ENGINE_HOST_BYTES = 268 * 10**6
LIBRARY_BYTES = 51_800_000
# What tests/engines/build/test_plugins.py holds engines to.
ENGINE_LIMIT_BYTES = 10 * 10**6
ENGINE_HOST_LIMIT_BYTES = 4 * 10**9
# Default targets of `glm-trt build` (its RTX_TARGETS, which is not imported for its loading time).
BUILD_TARGETS = ("sm80", "sm86", "sm89", "sm120")


def block_kinds(config: ModelConfig) -> list[str]:
    """Kinds of graph, in the order of a pass, and that of the prediction layers."""
    count = config.num_hidden_layers
    layers = dict.fromkeys(block_kind(config, i) for i in range(count))
    predictions = dict.fromkeys(block_kind(config, i) for i in mtp_layers(config))
    return ["embedding", *layers, "head", *predictions]


def export_needs(weights: Weights) -> dict[str, int]:
    """Bytes of disk and of host memory to export, without and with `--materialize`.

    Weights are not read but to check them, one block of the file at a time.
    """
    config = weights.config
    graphs = len(block_kinds(config)) * GRAPH_DTYPES * GRAPH_BYTES
    disk = graphs + (config.num_hidden_layers + 2) * BINDINGS_BYTES
    return {
        "disk_bytes": disk,
        "disk_bytes_materialized": disk + weights.stored_bytes(),
        "host_memory_bytes": EXPORT_HOST_BYTES,
    }


def build_needs(config: ModelConfig) -> dict[str, Any]:
    """Engines to build and bytes of disk and host memory for them: engines are built one by one."""
    kinds = block_kinds(config)
    return {
        "kinds": kinds,
        "engines_per_target": len(kinds),
        "default_targets": list(BUILD_TARGETS),
        "engines": len(kinds) * len(BUILD_TARGETS),
        "disk_bytes": len(kinds) * len(BUILD_TARGETS) * ENGINE_BYTES + LIBRARY_BYTES,
        "disk_bytes_limit": len(kinds) * len(BUILD_TARGETS) * ENGINE_LIMIT_BYTES + LIBRARY_BYTES,
        "host_memory_bytes": ENGINE_HOST_BYTES,
        "host_memory_bytes_limit": ENGINE_HOST_LIMIT_BYTES,
    }
