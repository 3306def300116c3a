"""The decode roofline: bytes that a step must read, over the bandwidth that reads them."""

from __future__ import annotations

from dataclasses import dataclass

from glm_trt.engines.planning.gpus import GpuModel
from glm_trt.engines.planning.weights import Weights
from glm_trt.model.checkpoint.tensors import mtp_layers
from glm_trt.model.config import ModelConfig
from glm_trt.model.states import kind_states


@dataclass(frozen=True)
class Decode:
    """One step of a batch on the GPU that reads most: bytes, and an upper bound of the rate."""

    weight_bytes: int
    state_bytes: int
    seconds: float
    tokens_per_second: float


def decode_bound(weights: Weights, gpu: GpuModel, gpus: int, context: int, batch: int) -> Decode:
    """Reading alone, at the vendor's peak bandwidth: no arithmetic, communication or launch."""
    read = weights.rank_step_bytes(gpus, batch)
    state = batch * step_state_bytes(weights.config, gpus, context, weights.with_mtp)
    seconds = (read + state) / (gpu.bandwidth_gb_s * 1e9)
    return Decode(read, state, seconds, batch / seconds)


def step_state_bytes(config: ModelConfig, gpus: int, context: int, with_mtp: bool = False) -> int:
    """Bytes of states that a GPU reads (and, of linear attention, writes back) for one token.

    An indexer scans every key. A layer that selects reads no more than `index_topk` entries of its
    latent cache, a full one reads all of them. The one entry written is left out.
    """
    kinds = [*config.attention_kinds]
    if with_mtp:
        kinds += [config.attention_kind(i) for i in mtp_layers(config)]
    total = 0
    for kind in kinds:
        for spec in kind_states(config, kind):
            selected = spec.name == "kv_cache" and kind in ("indexed", "shared")
            entries = min(config.index_topk, context) if selected else context
            size = 4 if spec.dtype == "float32" else 2
            for axis in spec.shape(1, entries):
                size *= axis
            total += size if spec.has_capacity else -(-2 * size // gpus)
    return total
