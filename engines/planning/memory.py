"""What a GPU of a split holds: states, workspace, and how much of it fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from glm_trt.engines.planning.gpus import GpuModel
from glm_trt.engines.planning.weights import Weights
from glm_trt.model.checkpoint.tensors import mtp_layers
from glm_trt.model.config import ModelConfig
from glm_trt.model.states import kind_states
from glm_trt.plugins.common.cost import Cost, sizes_of_call
from glm_trt.plugins.common.launch import Launches
from glm_trt.plugins.folders import CONTRACTS, part_of

# Not planned with: the CUDA context, the plans, communication buffers, fragments.
RESERVED_FRACTION = 0.10
RESERVED_LEAST = 2 * 10**9
# Tokens of one pass over a prompt: the default of `glm-trt build`.
PREFILL_TOKENS = 512
# Scratch of a block's engine for one token, measured: MLA with a dense MLP at GLM-5.1's dimensions.
BLOCK_SCRATCH = 34 * 10**6
_ACTIVATION = 2  # bytes; caches too


@dataclass(frozen=True)
class StateBytes:
    """Of one sequence over all layers, by the state's name: bytes a token of context, and bytes
    whatever the context.
    """

    per_token: dict[str, int]
    per_sequence: dict[str, int]


@lru_cache
def plugin_bytes(config: ModelConfig, context: int, batch: int) -> dict[str, int]:
    """What each operator of the model's blocks asks for, by its folder: for a prompt's tokens or
    for one of each sequence, whichever is more.

    Those for narrow weights are left out: experts ask for the same, linear layers for nothing.
    """
    calls = {(1, min(PREFILL_TOKENS, context)), (batch, 1)}
    found = {}
    for name, contract in CONTRACTS.items():
        cost: Cost = part_of(name, "cost").COST
        sizes = cost.sizes(config)
        if sizes is None or cost.narrow:
            continue
        launches: Launches = part_of(name, "launch").LAUNCHES
        found[name] = max(
            launches.offsets(sizes_of_call(contract, sizes, rows, tokens, context, _ACTIVATION))[1]
            for rows, tokens in calls
        )
    return found


@lru_cache
def state_bytes(config: ModelConfig, with_mtp: bool) -> StateBytes:
    """The states of the decoder's layers, with or without those of the prediction layers."""
    kinds = [*config.attention_kinds]
    if with_mtp:
        kinds += [config.attention_kind(i) for i in mtp_layers(config)]
    token: Counter[str] = Counter()
    sequence: Counter[str] = Counter()
    for kind in kinds:
        for spec in kind_states(config, kind):
            size = 4 if spec.dtype == "float32" else _ACTIVATION
            for axis in spec.shape(1, 1):
                size *= axis
            (token if spec.has_capacity else sequence)[spec.name] += size
    return StateBytes(dict(token), dict(sequence))


def workspace_bytes(config: ModelConfig, context: int, batch: int) -> dict[str, int]:
    """An upper estimate of what a pass needs besides weights and states, by part.

    The buffers of one operator at a time (the largest counts: `plugins` is that), the activations
    of one block, and what blocks hand to each other. None of it is taken as split over GPUs.
    """
    tokens = max(min(PREFILL_TOKENS, context), batch)
    largest = max(plugin_bytes(config, context, batch).values(), default=0)
    activations = BLOCK_SCRATCH + tokens * _live_elements(config) * _ACTIVATION
    between = tokens * (2 * config.hidden_size + config.vocab_size) * _ACTIVATION
    return {"plugins": largest, "activations": activations, "logits_and_hidden": between}


def _live_elements(config: ModelConfig) -> int:
    """Numbers a token that a block's activations have, as if none were ever freed."""
    heads, latent = config.num_attention_heads, config.kv_lora_rank
    entry = latent + config.qk_rope_head_dim
    query = config.qk_nope_head_dim + config.qk_rope_head_dim
    attention = heads * (query + 2 * entry + 2 * latent + config.v_head_dim)
    values = config.linear_num_value_heads * config.linear_value_head_dim
    keys = config.linear_num_value_heads * config.linear_key_head_dim
    linear = 4 * values + 4 * keys
    return max(attention, linear) + 3 * config.intermediate_size + 4 * config.hidden_size


@dataclass(frozen=True)
class Load:
    """Bytes on the fullest GPU of a split."""

    weights: int
    state: int
    workspace: int

    @property
    def total(self) -> int:
        """All that is planned with."""
        return self.weights + self.state + self.workspace


def usable_bytes(gpu: GpuModel) -> int:
    """The GPU's memory less the reserve."""
    return gpu.memory_bytes - max(round(gpu.memory_bytes * RESERVED_FRACTION), RESERVED_LEAST)


def rank_load(weights: Weights, gpus: int, context: int, batch: int) -> Load:
    """What one of `gpus` GPUs holds for `batch` sequences of `context` tokens.

    Every GPU has the whole latent and indexer cache, as all heads read the same entries; states of
    linear attention are split by heads.
    """
    states = state_bytes(weights.config, weights.with_mtp)
    token = sum(states.per_token.values()) * context
    sequence = -(-sum(states.per_sequence.values()) // gpus)
    workspace = sum(workspace_bytes(weights.config, context, batch).values())
    return Load(weights.rank_bytes(gpus), batch * (token + sequence), workspace)


def gpus_needed(
    weights: Weights, gpu: GpuModel, counts: tuple[int, ...], context: int, batch: int
) -> int | None:
    """The smallest of `counts` whose GPUs hold their load; None if none does."""
    usable = usable_bytes(gpu)
    for count in counts:
        if rank_load(weights, count, context, batch).total <= usable:
            return count
    return None


def largest_batch(weights: Weights, gpu: GpuModel, gpus: int, context: int) -> int:
    """The most sequences of `context` tokens that fit, 0 if none does."""
    usable = usable_bytes(gpu)
    return _largest(lambda n: rank_load(weights, gpus, context, n).total <= usable, 1 << 20)


def largest_context(weights: Weights, gpu: GpuModel, gpus: int, batch: int) -> int:
    """The longest context of `batch` sequences that fits, at most the model's; 0 if none does."""
    usable, most = usable_bytes(gpu), weights.config.max_position_embeddings
    return _largest(lambda n: rank_load(weights, gpus, n, batch).total <= usable, most)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest n up to `most` that fits, where all below it do."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
