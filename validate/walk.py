"""Walking a bundle block by block: the exact model, the same in the backend's dtype, the backend.

Each block runs twice per piece of a case. *Isolated*: all three get the exact model's input,
rounded to the backend's dtype, so the difference is this block's own. *Propagated*: each gets
what it made itself, so the difference is what has gathered so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.bundle import Bundle, BundleBlock
from glm_trt.model.bindings import NUMPY_DTYPES
from glm_trt.model.states import input_dtype
from glm_trt.validate.cases import Case
from glm_trt.validate.choices import CHOSEN_BY, compare_choices
from glm_trt.validate.compare import Choices, Difference
from glm_trt.validate.reference import Reference

Array = NDArray[Any]
Arrays = dict[str, Array]
CHAINS = ("exact", "rounded", "found")


class Backend(Protocol):
    """What can run one block on arrays."""

    dtype: str

    def run_block(self, block: BundleBlock, inputs: Arrays) -> Arrays:
        """All outputs of the block by name."""
        ...


@dataclass
class Pair:
    """The backend's difference from the exact model beside that of the eager model in its dtype."""

    found: Difference = field(default_factory=Difference)
    rounded: Difference = field(default_factory=Difference)

    def add(self, outputs: dict[str, Array], place: str, rows: Array | None = None) -> None:
        """Pool one tensor of the three chains."""
        self.found.add(outputs["found"], outputs["exact"], place, rows)
        self.rounded.add(outputs["rounded"], outputs["exact"], place, rows)


@dataclass
class BlockResult:
    """What was measured of one block over all cases."""

    block: BundleBlock
    isolated: dict[str, Pair] = field(default_factory=dict)
    choices: dict[str, Choices] = field(default_factory=dict)
    overwritten: list[str] = field(default_factory=list)
    propagated: Pair = field(default_factory=Pair)
    set_aside: int = 0


@dataclass
class Flow:
    """What passes from block to block in one case: chain → piece → arrays by name.

    `parted` [B, S] marks tokens in which a chain chose otherwise than the exact model in an
    earlier block, or which follow such a token: rounding no longer explains their difference.
    """

    case: Case
    values: dict[str, list[Arrays]]
    parted: NDArray[np.bool_]


def start(case: Case) -> Flow:
    """Before the first block."""
    batch, length = case.ids.shape
    pieces: list[Arrays] = [
        {
            "input_ids": case.ids[:, a:b],
            "past_lengths": np.full(batch, a),
            "lengths": np.full(batch, b - a),
        }
        for a, b in case.pieces
    ]
    values = {chain: [dict(piece) for piece in pieces] for chain in CHAINS}
    return Flow(case, values, np.zeros((batch, length), bool))


def start_prediction(flow: Flow) -> None:
    """Before a prediction layer: each token is given the embedding that its follower had so far,
    the last token, which nothing follows, its own.
    """
    for pieces in flow.values.values():
        embedded = np.concatenate([piece["embedded"] for piece in pieces], axis=1)
        following = np.concatenate([embedded[:, 1:], embedded[:, -1:]], axis=1)
        for piece, (begin, end) in zip(pieces, flow.case.pieces, strict=True):
            piece["embedded"] = following[:, begin:end]


def walk_block(
    bundle: Bundle, block: BundleBlock, reference: Reference, backend: Backend, flows: list[Flow]
) -> BlockResult:
    """Run `block` on every case, moving each flow past it."""
    exact = reference.block(block, "float64")
    rounded = reference.block(block, backend.dtype, absorbed=True)
    runners: dict[str, Callable[[Arrays], Arrays]] = {
        "exact": exact,
        "rounded": rounded,
        "found": lambda inputs: backend.run_block(block, inputs),
    }
    result = BlockResult(block)
    for flow in flows:
        states = {chain: _empty_states(bundle, block, flow.case) for chain in CHAINS}
        parted_here = np.zeros_like(flow.parted)
        for i, (begin, end) in enumerate(flow.case.pieces):
            place = f"{flow.case.name}, positions {begin}…{end - 1}"
            _isolated(bundle, block, runners, flow.values["exact"][i], states["exact"],
                      backend.dtype, result, place)  # fmt: skip
            outputs = {}
            for chain in CHAINS:
                inputs = _fed(bundle, block, flow.values[chain][i], states[chain])
                outputs[chain] = runners[chain](_cast(inputs, _dtype_of(chain, backend)))
                states[chain] = {name: outputs[chain][f"{name}_out"] for name in states[chain]}
                _pass_on(block, flow.values[chain][i], outputs[chain])
            parted_here[:, begin:end] = _choices_differ(outputs, end - begin)
        flow.parted |= parted_here
        for i, (begin, end) in enumerate(flow.case.pieces):
            rows = ~flow.parted[:, begin:end]
            name = "logits" if block.kind == "head" else "hidden"
            values = {chain: flow.values[chain][i][name] for chain in CHAINS}
            result.propagated.add(values, f"{flow.case.name}, positions {begin}…{end - 1}", rows)
            result.set_aside += int((~rows).sum())
        flow.parted = np.logical_or.accumulate(flow.parted, axis=1)
    return result


def _isolated(
    bundle: Bundle,
    block: BundleBlock,
    runners: dict[str, Any],
    values: Arrays,
    states: Arrays,
    dtype: str,
    result: BlockResult,
    place: str,
) -> None:
    specs = {spec.name: spec for spec in bundle.states(block)}
    inputs = _cast(_fed(bundle, block, values, states), dtype)
    outputs = {chain: runners[chain](inputs) for chain in CHAINS}
    exact, rounded = runners["exact"], runners["rounded"]
    length = inputs.get("hidden", inputs.get("input_ids", np.zeros((1, 1)))).shape[1]
    begin = int(inputs["past_lengths"][0]) if "past_lengths" in inputs else 0
    rows = None
    for name in CHOSEN_BY.keys() & outputs["exact"].keys():
        pooled = result.choices.setdefault(name, Choices())
        equal = compare_choices(
            bundle.config, name, outputs, (exact.scores, rounded.scores), pooled, place
        )
        rows = equal if rows is None else rows & equal
    for name, expected in outputs["exact"].items():
        if name in CHOSEN_BY:
            continue
        tensors = {chain: outputs[chain][name] for chain in CHAINS}
        mask = None
        spec = specs.get(name.removesuffix("_out"))
        if spec is None:
            mask = None if rows is None else rows.reshape(expected.shape[:-1])
        elif spec.has_capacity:
            if not _kept(tensors["found"], inputs[spec.name], begin, length):
                result.overwritten.append(f"{name}, {place}")
            tensors = {k: v[:, :, begin : begin + length] for k, v in tensors.items()}
        result.isolated.setdefault(name, Pair()).add(tensors, place, mask)


def _kept(found: Array, before: Array, begin: int, length: int) -> bool:
    """Whether the positions of a state that this pass does not write are as they were."""
    end = begin + length
    return np.array_equal(found[:, :, :begin], before[:, :, :begin]) and np.array_equal(
        found[:, :, end:], before[:, :, end:]
    )


def _empty_states(bundle: Bundle, block: BundleBlock, case: Case) -> Arrays:
    batch, length = case.ids.shape
    return {spec.name: np.zeros(spec.shape(batch, length)) for spec in bundle.states(block)}


def _fed(bundle: Bundle, block: BundleBlock, values: Arrays, states: Arrays) -> Arrays:
    if block.name == "embedding":
        return {name: values[name] for name in ("input_ids", "past_lengths")}
    if block.layer is None:
        return {"hidden": values["hidden"]}
    kind = bundle.config.attention_kind(block.layer)
    names = ["hidden", "lengths"] if kind == "linear" else ["hidden", "cos", "sin", "past_lengths"]
    inputs = {name: values[name] for name in names} | states
    if block.prediction is not None:
        inputs["embedded"] = values["embedded"]
    if kind == "shared":
        inputs["shared_indices"] = values["topk_indices"]
    return inputs


def _dtype_of(chain: str, backend: Backend) -> str:
    return "float64" if chain == "exact" else backend.dtype


def _cast(inputs: Arrays, dtype: str) -> Arrays:
    return {
        name: array
        if array.dtype.kind in "iu"
        else array.astype(NUMPY_DTYPES[input_dtype(name, dtype)])
        for name, array in inputs.items()
    }


def _pass_on(block: BundleBlock, values: Arrays, outputs: Arrays) -> None:
    if block.name == "embedding":
        values["embedded"] = outputs["hidden_out"]
    for name in ("cos", "sin", "topk_indices", "logits"):
        if name in outputs:
            values[name] = outputs[name]
    if "hidden_out" in outputs:
        values["hidden"] = outputs["hidden_out"]


def _choices_differ(outputs: dict[str, Arrays], length: int) -> NDArray[np.bool_]:
    """Tokens [B, S] in which the backend or the rounded model chose otherwise than the exact."""
    exact = outputs["exact"]
    differ = np.zeros((1, 1), bool)
    for name in CHOSEN_BY.keys() & exact.keys():
        expected = np.sort(exact[name].reshape(-1, exact[name].shape[-1]))
        for chain in ("rounded", "found"):
            found = np.sort(outputs[chain][name].reshape(expected.shape))
            differ = differ | (found != expected).any(-1).reshape(-1, length)
    return differ
