"""Inputs of one block that no text gives, by the name of the probe.

*ties*: whatever is chosen is chosen among equals. *padding*: rows of different lengths in a linear
layer, large numbers behind them. *carried*: rows without a token, whose states are to come out as
they went in. *far*: positions near the last that the bundle has room for.
*large*: activations beyond what float16 holds; *large states*: the same in what a layer carries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES
from glm_trt.model.config import ModelConfig

if TYPE_CHECKING:
    from glm_trt.validate.running.walk import Flow

Array = NDArray[Any]
Arrays = dict[str, Array]
# In positions of caches that nothing has written, and in padding: nothing may read it.
GARBAGE = 64.0
PADDING = 3
TIES_BEYOND = 8
# Rows of the far probe, whose pasts differ, and what its caches and the exact model's keys and
# values of them may take: of a large model they are not as long as the bundle has room for.
FAR_ROWS = 2
MOST_CACHE_BYTES, MOST_EXPANDED_NUMBERS = 1 << 26, 1 << 28
# Spread of large hidden states and states. Of float16 what leaves it room for sums: it is not at
# fault for what it does not hold.
LARGE, LARGE_IN_FLOAT16 = 2.0**20, 2.0**10
LARGE_TOKENS, LARGE_PAST, LARGE_ROWS = 8, 7, 8
# A score of what is not chosen, against the lowest of what is: rounding decides nothing then.
APART = 4.0


@dataclass(frozen=True)
class Probe:
    """Inputs of a block in float64, and which tokens [B, S] count, all if None."""

    mode: str
    inputs: Arrays
    rows: NDArray[np.bool_] | None = None


def make_probes(
    bundle: Bundle,
    block: Block,
    dtype: str,
    flows: list[Flow],
    states: Arrays,
    position_scores: Callable[[Arrays], Array],
) -> Iterator[Probe]:
    """Those of `block`.

    Parameters
    ----------
    dtype : the backend's.
    flows : shortest first, behind this block already: any hidden state will do.
    states : the exact model's behind the last of them: what is usual there.
    position_scores : the exact model's indexer's, [B, S, C], on inputs of this block.
    """
    config = bundle.config
    if block.name == "embedding":
        yield from _far_embeddings(bundle)
    elif block.layer is None:
        yield Probe("large", {"hidden": _large_hidden(config, dtype, LARGE_TOKENS)})
    else:
        yield _ties(bundle, block)
        if config.attention_kind(block.layer) == "linear":
            yield from _padding(bundle, block, flows)
            yield _carried(bundle, block, flows[-1])
        else:
            yield _far(bundle, block, dtype, flows[-1], states, position_scores)
        yield _large(bundle, block, dtype)
        if config.attention_kind(block.layer) == "linear" or not config.attention_bias:
            yield _large_states(bundle, block, dtype, flows[-1])


def fed(config: ModelConfig, block: Block, values: Arrays, states: Arrays) -> Arrays:
    """What `block` takes of `values`, with its `states`."""
    if block.name == "embedding":
        return {name: values[name] for name in ("input_ids", "past_lengths")}
    if block.layer is None:
        return {"hidden": values["hidden"]}
    kind = config.attention_kind(block.layer)
    names = ["hidden", "lengths"] if kind == "linear" else ["hidden", "cos", "sin", "past_lengths"]
    inputs = {name: values[name] for name in names} | states
    if block.prediction is not None:
        inputs["embedded"] = values["embedded"]
    if kind == "shared":
        inputs["shared_indices"] = values["topk_indices"]
    return inputs


def usual_tokens(flow: Flow, name: str, batch: int, length: int) -> Array:
    """Rows [B, S, hidden] of what the exact model made of the tokens of a case, over and over where
    they are too few.
    """
    made = np.concatenate([piece[name] for piece in flow.values["exact"]], axis=1)
    counted = flow.case.counted
    tokens = made.reshape(-1, made.shape[-1]) if counted is None else made[counted]
    return tokens[np.arange(batch * length) % len(tokens)].reshape(batch, length, -1)


def far_positions(bundle: Bundle, block: Block, dtype: str) -> int:
    """How many positions the caches of the far probe have."""
    config = bundle.config
    size = NUMPY_DTYPES[dtype].itemsize
    width = max(spec.shape(1, 1)[-1] for spec in bundle.states(block))
    head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    expanded = config.num_attention_heads * head
    return max(1, min(
        bundle.max_seq_len,
        MOST_CACHE_BYTES // (FAR_ROWS * width * size),
        MOST_EXPANDED_NUMBERS // (FAR_ROWS * expanded),
    ))  # fmt: skip


def before_round_up(capacity: int) -> int:
    """A past near `capacity` that a type with fewer digits rounds up, to a position that is there:
    one before a multiple of the eighth of a power of two.
    """
    last = capacity - 1
    if last < 1:
        return 0
    step = max((1 << last.bit_length()) // 16, 1)
    return last - last % step - 1


def _ties(bundle: Bundle, block: Block) -> Probe:
    """A hidden state of zeros, behind zeros: whatever is chosen by its scores is chosen among
    ties.
    """
    config, kind = bundle.config, bundle.config.attention_kind(_layer(block))
    past = min(bundle.max_seq_len - 1, config.index_topk * (kind != "linear") + TIES_BEYOND)
    states = {spec.name: np.zeros(spec.shape(1, past + 1)) for spec in bundle.states(block)}
    return Probe("ties", fed(config, block, _zeros(config, 1, past), states))


def _zeros(config: ModelConfig, batch: int, past: int) -> Arrays:
    """One token of zeros a row behind `past` others."""
    hidden = np.zeros((batch, 1, config.hidden_size))
    angles = np.zeros((batch, 1, config.qk_rope_head_dim // 2))
    chosen = np.arange(min(config.index_topk, past + 1), dtype=np.int32)
    return {
        "hidden": hidden, "embedded": hidden, "cos": angles + 1, "sin": angles,
        "past_lengths": np.full(batch, past), "lengths": np.ones(batch, np.int64),
        "topk_indices": np.broadcast_to(chosen, (batch, 1, len(chosen))),
    }  # fmt: skip


def _padding(bundle: Bundle, block: Block, flows: list[Flow]) -> Iterator[Probe]:
    # Not the ragged case, which has padding of its own.
    long = [
        flow
        for flow in flows
        if flow.case.ragged is None and flow.values["exact"][0]["hidden"].shape[1] > PADDING
    ]
    if not long:
        return
    widest = max(long, key=lambda flow: flow.case.ids.shape[0])
    values = dict(widest.values["exact"][0])
    hidden = values["hidden"].copy()
    batch, length, _ = hidden.shape
    lengths = np.full(batch, length)
    lengths[-1] -= PADDING
    rows = np.arange(length) < lengths[:, None]
    hidden[~rows] = GARBAGE
    states = {spec.name: np.zeros(spec.shape(batch, length)) for spec in bundle.states(block)}
    values |= {"hidden": hidden, "lengths": lengths}
    yield Probe("padding", fed(bundle.config, block, values, states), rows)


def _carried(bundle: Bundle, block: Block, flow: Flow) -> Probe:
    """Padding alone, which leaves states bit for bit as they were; of few digits, they were not
    stored in their dtype. Beside what a token adds, its rounding hides that.
    """
    random = np.random.default_rng(_layer(block))
    hidden = usual_tokens(flow, "hidden", FAR_ROWS, 1)
    states = {
        spec.name: random.standard_normal(spec.shape(FAR_ROWS, 1)) for spec in bundle.states(block)
    }
    values = {"hidden": hidden, "lengths": np.zeros(FAR_ROWS, np.int64)}
    rows = np.zeros((FAR_ROWS, 1), bool)
    return Probe("carried", fed(bundle.config, block, values, states), rows)


def _far_embeddings(bundle: Bundle) -> Iterator[Probe]:
    """Two rows at a time: the last position and, behind each power of two, two odd ones."""
    random = np.random.default_rng(0)
    last = bundle.max_seq_len - 1
    powers = [1 << i for i in range(1, last.bit_length())]
    pairs = [(power + 1, 2 * power - 1) for power in powers] + [(last, before_round_up(last + 1))]
    for pasts in pairs:
        ids = random.integers(0, bundle.config.vocab_size, (len(pasts), 1))
        past_lengths = np.minimum(np.array(pasts, np.int64), last)
        yield Probe("far", {"input_ids": ids, "past_lengths": past_lengths})


def _far(
    bundle: Bundle,
    block: Block,
    dtype: str,
    flow: Flow,
    states: Arrays,
    position_scores: Callable[[Arrays], Array],
) -> Probe:
    """A decode step behind caches of the usual spread; what nothing has written is garbage.

    Among so many keys rounding would choose: those that the exact model's indexer does not choose
    are made to score less.
    """
    config, random = bundle.config, np.random.default_rng(_layer(block))
    capacity = far_positions(bundle, block, dtype)
    pasts = np.array([before_round_up(capacity), capacity - 1], np.int64)
    kept = np.arange(capacity) < pasts[:, None]
    chosen = min(config.index_topk, capacity)
    indices = np.full((FAR_ROWS, 1, chosen), -1, np.int32)
    for row, past in enumerate(pasts):
        count = min(chosen, int(past) + 1)
        indices[row, 0, :count] = np.sort(random.permutation(int(past) + 1)[:count])
    hidden = usual_tokens(flow, "hidden", FAR_ROWS, 1)
    cos, sin = _angles(config, pasts[:, None])
    values = {
        "hidden": hidden, "cos": cos, "sin": sin, "past_lengths": pasts, "topk_indices": indices,
    }  # fmt: skip
    if block.prediction is not None:
        values["embedded"] = usual_tokens(flow, "embedded", FAR_ROWS, 1)
    caches = {}
    for spec in bundle.states(block):
        usual = states[spec.name][0, 0, : _tokens_of_first_row(flow)]
        drawn = random.standard_normal(spec.shape(FAR_ROWS, capacity))
        drawn = usual.mean(0) + usual.std(0) * drawn
        caches[spec.name] = np.where(kept[:, None, :, None], drawn, GARBAGE)
    inputs = fed(config, block, values, caches)
    if "index_keys" in caches and capacity > chosen:
        factor = _less(position_scores(inputs)[:, 0], chosen)
        factor = np.where(kept, factor, 1.0)
        inputs["index_keys"] = caches["index_keys"] * factor[:, None, :, None]
    return Probe("far", inputs)


def _less(scores: Array, count: int) -> Array:
    """By what keys are multiplied, [B, C], so that the `count` best of their scores, which are
    linear in them, are best by far.
    """
    lowest = np.sort(scores)[:, -count, None]
    by = np.where(lowest > 0, 1 / APART, APART)
    beaten = (scores < lowest) & (np.sign(scores) == np.sign(lowest))
    return np.where(beaten, by, 1.0)


def _large(bundle: Bundle, block: Block, dtype: str) -> Probe:
    """A few large tokens, the first of their sequence."""
    config = bundle.config
    length = min(LARGE_TOKENS, bundle.max_seq_len)
    hidden = _large_hidden(config, dtype, length)
    cos, sin = _angles(config, np.arange(length)[None])
    chosen = min(config.index_topk, length)
    indices = np.broadcast_to(np.arange(chosen, dtype=np.int32), (1, length, chosen))
    values = {
        "hidden": hidden, "embedded": hidden[:, ::-1].copy(), "cos": cos, "sin": sin,
        "past_lengths": np.zeros(1, np.int64), "lengths": np.full(1, length),
        "topk_indices": np.where(indices <= np.arange(length)[:, None], indices, -1),
    }  # fmt: skip
    states = {
        spec.name: np.full(spec.shape(1, length), GARBAGE if spec.has_capacity else 0.0)
        for spec in bundle.states(block)
    }
    return Probe("large", fed(config, block, values, states))


def _large_hidden(config: ModelConfig, dtype: str, length: int) -> Array:
    """[1, S, hidden]: every second token is large in all channels, the others in one."""
    random = np.random.default_rng(1)
    hidden = random.standard_normal((1, length, config.hidden_size))
    hidden[:, ::2] *= _large_in(dtype)
    for token in range(1, length, 2):
        hidden[0, token, random.integers(config.hidden_size)] = APART * _large_in(dtype)
    return hidden


def _large_states(bundle: Bundle, block: Block, dtype: str, flow: Flow) -> Probe:
    """One token behind large states. Where a softmax would choose among large scores by rounding
    alone, the token is of zeros, whose scores are equal: it takes the mean of all.
    """
    config, random = bundle.config, np.random.default_rng(_layer(block))
    past = min(LARGE_PAST, bundle.max_seq_len - 1)
    values = _zeros(config, LARGE_ROWS, past)
    if config.attention_kind(_layer(block)) == "linear":
        values["hidden"] = usual_tokens(flow, "hidden", LARGE_ROWS, 1)
    states = {
        spec.name: random.standard_normal(spec.shape(LARGE_ROWS, past + 1)) * _large_in(dtype)
        for spec in bundle.states(block)
    }
    return Probe("large states", fed(config, block, values, states))


def _large_in(dtype: str) -> float:
    return LARGE_IN_FLOAT16 if dtype == "float16" else LARGE


def _angles(config: ModelConfig, positions: Array) -> tuple[Array, Array]:
    """cos and sin [B, S, rope/2] at `positions` [B, S], as an embedding makes them."""
    width = config.qk_rope_head_dim
    frequencies = 1 / config.rope_theta ** (np.arange(0, width, 2, dtype=np.float32) / width)
    angles = positions[..., None].astype(np.float32) * frequencies.astype(np.float32)
    return np.cos(angles), np.sin(angles)


def _tokens_of_first_row(flow: Flow) -> int:
    case = flow.case
    return case.ids.shape[1] if case.counted is None else int(case.counted[0].sum())


def _layer(block: Block) -> int:
    assert block.layer is not None
    return block.layer
