"""Walking a bundle block by block: the exact model, the same in the backend's dtype, the backend.

Each block runs twice per piece of a case. *Isolated*: all three get the exact model's input,
rounded to the backend's dtype, so the difference is this block's own. *Propagated*: each gets
what it made itself, so the difference is what has gathered so far. Probes (`probes`) are isolated
runs on inputs that no text gives; `many_steps` follows what linear layers carry.

What is seen is handed on as `Observation`s; memory holds one block and what it handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import BlockError
from glm_trt.model.states import input_dtype
from glm_trt.validate.judging.choices import CHOSEN_BY
from glm_trt.validate.judging.problem_kinds import Finding, ProblemKind
from glm_trt.validate.running.cases import Case
from glm_trt.validate.running.many_steps import (
    STEP_ROWS,
    STEPS,
    has_many_steps,
    run_many_steps,
)
from glm_trt.validate.running.probes import GARBAGE, fed, make_probes, usual_tokens

if TYPE_CHECKING:  # diff reads observations too, and needs no PyTorch
    from glm_trt.validate.running.reference import EagerBlock, Reference
    from glm_trt.validate.running.subjects import Subject

Array = NDArray[Any]
Arrays = dict[str, Array]
CHAINS = ("exact", "rounded", "found")


@dataclass(frozen=True)
class Observation:
    """What the three chains made of one input of one block.

    Attributes
    ----------
    mode : "isolated" (one pass), "propagated" (a whole case), "steps" (of a linear layer, each
        chain behind its own states), a probe's name, or "weights": no run, but findings of what is
        bound.
    begin : the position of the first token; the column of the first, where rows are ragged.
    prefill : how many of the tokens are of the prefill.
    tensors : chain → output → array [B, S, ...], indices of experts [B·S, k]; of a state with a
        capacity [B, 1, S, width] the positions that were written, of another all.
    scores : of "exact" and "rounded", what experts and positions were chosen by.
    findings : what is wrong with outputs other than their numbers: a shape, or positions of a state
        that changed and should not have.
    rows : tokens [B, S] that count and are no padding, all if None.
    inputs : what all three were given (isolated runs and probes).
    """

    block: str
    case: str
    mode: str
    begin: int
    prefill: int
    tensors: dict[str, Arrays]
    scores: dict[str, Arrays] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    rows: NDArray[np.bool_] | None = None
    inputs: Arrays | None = None

    @property
    def phase(self) -> str:
        """Of an isolated run: "prefill" or "decode"; a probe's name."""
        if self.mode == "isolated":
            return "prefill" if self.prefill else "decode"
        return self.mode

    @property
    def place(self) -> str:
        """Where this was, for people."""
        tensors = self.tensors["exact"]
        name = next(name for name in ("hidden_out", "logits") if name in tensors)
        length = tensors[name].shape[1]
        if self.mode == "steps":
            return f"{length} decode steps"
        if self.mode == "far":
            return f"probe of far positions, row 0 at {self.begin}"
        if self.mode not in ("isolated", "propagated"):
            return f"probe of {self.mode}"
        what = "positions" if self.rows is None else "columns"
        return f"{self.case}, {what} {self.begin}…{self.begin + length - 1}"


@dataclass
class Flow:
    """What passes from block to block in one case: chain → piece → arrays by name."""

    case: Case
    values: dict[str, list[Arrays]]


@dataclass(frozen=True)
class Runners:
    """The three chains of one block."""

    exact: EagerBlock
    rounded: EagerBlock
    found: Callable[[Arrays], Arrays]
    dtype: str

    def cast(self, inputs: Arrays, dtype: str | None = None) -> Arrays:
        """`inputs` in `dtype`, the backend's if None."""
        return cast(inputs, dtype or self.dtype)

    def run(self, inputs: dict[str, Arrays]) -> tuple[dict[str, Arrays], list[Finding]]:
        """The outputs of each chain on its own input, all of the shapes that they should have, and
        what was wrong with those of the backend (`conform`).
        """
        outputs = {"exact": self.exact(inputs["exact"]), "rounded": self.rounded(inputs["rounded"])}
        try:
            outputs["found"] = self.found(inputs["found"])
        except BlockError as error:
            outputs["found"] = {}
            name = next(iter(outputs["exact"]))
            conform(outputs["found"], outputs["exact"])
            refused = Finding(name, f"cannot be run: {error}", ProblemKind.CANNOT_RUN)
            return outputs, [refused]
        return outputs, conform(outputs["found"], outputs["exact"])


def runners_of(reference: Reference, subject: Subject, block: Block) -> Runners:
    """Load what runs `block`."""
    return Runners(
        reference.block(block, "float64"),
        reference.block(block, subject.dtype, absorbed=True),
        lambda inputs: subject.run_block(block, inputs),
        subject.dtype,
    )


def start(case: Case) -> Flow:
    """Before the first block."""
    pieces: list[Arrays] = [
        {
            "input_ids": case.ids[:, piece.begin : piece.end],
            "past_lengths": piece.past_lengths,
            "lengths": piece.lengths,
        }
        for piece in case.pieces
    ]
    return Flow(case, {chain: [dict(piece) for piece in pieces] for chain in CHAINS})


def start_prediction(flow: Flow) -> None:
    """Before a prediction layer: each token is given the embedding that its follower had so far,
    the last token, which nothing follows, its own.
    """
    follower = _followers(flow.case)
    for pieces in flow.values.values():
        embedded = np.concatenate([piece["embedded"] for piece in pieces], axis=1)
        following = np.take_along_axis(embedded, follower[..., None], axis=1)
        for values, piece in zip(pieces, flow.case.pieces, strict=True):
            values["embedded"] = following[:, piece.begin : piece.end]


def _followers(case: Case) -> NDArray[np.int64]:
    """The column [B, S] of the token that follows each in its row; its own where none does."""
    batch, length = case.ids.shape
    columns = np.broadcast_to(np.arange(length), (batch, length))
    tokens = np.ones((batch, length), bool) if case.counted is None else case.counted
    follower = columns.copy()
    for row in range(batch):
        (own,) = np.nonzero(tokens[row])
        follower[row, own[:-1]] = own[1:]
    return follower


def walk_block(
    bundle: Bundle, block: Block, runners: Runners, flows: list[Flow]
) -> Iterator[Observation]:
    """Run `block` on every case, moving each flow past it, and on its probes."""
    for flow in flows:
        states = {chain: _states(bundle, block, flow.case) for chain in CHAINS}
        gathered: dict[str, list[Arrays]] = {chain: [] for chain in CHAINS}
        for i in range(len(flow.case.pieces)):
            yield _isolated(bundle, block, runners, flow, i, states["exact"])
            of_chains = {
                chain: cast(
                    _fed_piece(bundle.config, block, flow, chain, i, states[chain]),
                    "float64" if chain == "exact" else runners.dtype,
                )
                for chain in CHAINS
            }
            outputs, _ = runners.run(of_chains)
            for chain, of in outputs.items():
                states[chain] = {name: of[f"{name}_out"] for name in states[chain]}
                _pass_on(block, flow.values[chain][i], of)
                gathered[chain].append(of)
        yield _propagated(block, flow.case, gathered)
    yield from _probed(bundle, block, runners, flows, states["exact"])
    if has_many_steps(bundle, block):
        tokens = usual_tokens(flows[-1], "hidden", STEP_ROWS, STEPS)
        given = cast({"hidden": tokens}, runners.dtype)["hidden"]
        tensors, scores, findings, inputs = run_many_steps(bundle, block, runners, given)
        yield Observation(
            block.name, "", "steps", 0, 0, tensors, scores, tuple(findings), inputs=inputs
        )


def _probed(
    bundle: Bundle, block: Block, runners: Runners, flows: list[Flow], states: Arrays
) -> Iterator[Observation]:
    def position_scores(inputs: Arrays) -> Array:
        runners.exact(cast(inputs, runners.dtype))
        return runners.exact.scores["position_scores"]

    for probe in make_probes(bundle, block, runners.dtype, flows, states, position_scores):
        given = cast(probe.inputs, runners.dtype)
        seen = _run_isolated(bundle, block, runners, given, "", probe.mode, probe.rows)
        yield replace(seen, rows=in_range(seen))


def in_range(seen: Observation) -> NDArray[np.bool_] | None:
    """The tokens that count, without those in which the yardstick itself leaves the range of its
    dtype.
    """
    tensors = seen.tensors["rounded"]
    name = next(name for name in ("hidden_out", "logits") if name in tensors)
    finite = np.all(np.isfinite(tensors[name]), axis=-1, keepdims=False)
    if finite.all():
        return seen.rows
    return finite if seen.rows is None else finite & seen.rows


def conform(found: Arrays, expected: Arrays) -> list[Finding]:
    """Put nothing (NaN, index −1) in the place of outputs that are missing or of another shape than
    is expected, so that the rest can be compared; which, and what was wrong.
    """
    findings = []
    for name, wanted in expected.items():
        array = found.get(name)
        if array is not None and array.shape == wanted.shape:
            continue
        text = "missing" if array is None else (
            f"expected shape {list(wanted.shape)}, found {list(array.shape)}"
        )  # fmt: skip
        findings.append(Finding(name, text, ProblemKind.MISSING))
        integer = wanted.dtype.kind in "iu"
        found[name] = np.full(wanted.shape, -1 if integer else np.nan, wanted.dtype)
    return findings


def step_exact(
    bundle: Bundle,
    block: Block,
    runner: EagerBlock,
    flow: Flow,
    piece: int,
    states: dict[str, Arrays],
) -> None:
    """Move the exact chain of one piece past `block`; `states` are those of each block."""
    carried = states.get(block.name) or _states(bundle, block, flow.case)
    values = flow.values["exact"][piece]
    inputs = _fed_piece(bundle.config, block, flow, "exact", piece, carried)
    outputs = runner(cast(inputs, "float64"))
    states[block.name] = {name: outputs[f"{name}_out"] for name in carried}
    _pass_on(block, values, outputs)


def _fed_piece(
    config: ModelConfig, block: Block, flow: Flow, chain: str, piece: int, states: Arrays
) -> Arrays:
    """What `block` is given of one piece of a case: padding is large, so that it is seen where
    anything reads it.
    """
    inputs = fed(config, block, flow.values[chain][piece], states)
    rows = _counted(flow.case, piece)
    if rows is not None:
        for name in ("hidden", "embedded"):
            if name in inputs:
                inputs[name] = np.where(rows[..., None], inputs[name], GARBAGE)
    return inputs


def _counted(case: Case, piece: int) -> NDArray[np.bool_] | None:
    """Which columns of a piece are tokens [B, S]; None where all are."""
    of = case.pieces[piece]
    return None if case.counted is None else case.counted[:, of.begin : of.end]


def _isolated(
    bundle: Bundle, block: Block, runners: Runners, flow: Flow, piece: int, states: Arrays
) -> Observation:
    inputs = _fed_piece(bundle.config, block, flow, "exact", piece, states)
    of, rows = flow.case.pieces[piece], _counted(flow.case, piece)
    seen = _run_isolated(
        bundle, block, runners, cast(inputs, runners.dtype), flow.case.name, "isolated", rows
    )
    prefill = max(0, min(of.end, flow.case.prefill) - of.begin)
    return replace(seen, begin=of.begin, prefill=prefill)


def _run_isolated(
    bundle: Bundle,
    block: Block,
    runners: Runners,
    inputs: Arrays,
    case: str,
    mode: str,
    rows: NDArray[np.bool_] | None,
) -> Observation:
    outputs, findings = runners.run(dict.fromkeys(CHAINS, inputs))
    whole = not findings
    length = inputs.get("hidden", inputs.get("input_ids", np.zeros((1, 1)))).shape[1]
    past = inputs.get("past_lengths", np.zeros(1, np.int64))
    for spec in bundle.states(block):
        name = f"{spec.name}_out"
        if not spec.has_capacity:
            continue
        if whole and not _kept(outputs["found"][name], inputs[spec.name], past, length):
            text = "overwrites what it should keep"
            findings.append(Finding(name, text, ProblemKind.OVERWRITTEN))
        for made in outputs.values():
            made[name] = written(made[name], past, length)
    scores = {"exact": runners.exact.scores, "rounded": runners.rounded.scores}
    return Observation(
        block.name, case, mode, int(past[0]), 0, outputs, scores, tuple(findings), rows, inputs
    )


def written_positions(past: Array, length: int) -> Array:
    """Those [B, 1, S, 1] that a pass of `length` tokens behind `past` [B] of each row writes."""
    return (past[:, None] + np.arange(length))[:, None, :, None]


def written(state: Array, past: Array, length: int) -> Array:
    """The positions of a state [B, 1, C, width] that a pass writes: [B, 1, S, width], not the whole
    state.
    """
    return np.take_along_axis(state, written_positions(past, length), axis=2)


def _propagated(block: Block, case: Case, gathered: dict[str, list[Arrays]]) -> Observation:
    """What the pieces of a case gave, after one another."""
    batch = case.ids.shape[0]
    names = ["logits" if block.kind == "head" else "hidden_out"]
    names += [name for name in CHOSEN_BY if name in gathered["exact"][0]]
    tensors = {
        chain: {
            name: np.concatenate([_by_token(made[name], batch) for made in gathered[chain]], axis=1)
            for name in names
        }
        for chain in CHAINS
    }
    return Observation(
        block.name, case.name, "propagated", 0, case.prefill, tensors, rows=case.counted
    )


def _by_token(array: Array, batch: int) -> Array:
    """[B, S, ·] of what is [B, S, ·] or, of experts, [B·S, k]."""
    return array if array.ndim == 3 else array.reshape(batch, -1, array.shape[-1])


def _kept(found: Array, before: Array, past: Array, length: int) -> bool:
    """Whether the positions of a state that this pass does not write are as they were."""
    at = np.arange(found.shape[2])
    mine = (at >= past[:, None]) & (at < past[:, None] + length)
    return np.array_equal(
        np.where(mine[:, None, :, None], 0, found), np.where(mine[:, None, :, None], 0, before)
    )


def _states(bundle: Bundle, block: Block, case: Case) -> Arrays:
    batch, length = case.ids.shape
    return {
        spec.name: np.full(spec.shape(batch, length), GARBAGE if spec.has_capacity else 0.0)
        for spec in bundle.states(block)
    }


def cast(inputs: Arrays, dtype: str) -> Arrays:
    """The inputs of a block in `dtype`; integers stay as they are."""
    return {
        name: array
        if array.dtype.kind in "iu"
        else array.astype(NUMPY_DTYPES[input_dtype(name, dtype)])
        for name, array in inputs.items()
    }


def _pass_on(block: Block, values: Arrays, outputs: Arrays) -> None:
    if block.name == "embedding":
        values["embedded"] = outputs["hidden_out"]
    for name in ("cos", "sin", "topk_indices", "logits"):
        if name in outputs:
            values[name] = outputs[name]
    if "hidden_out" in outputs:
        values["hidden"] = outputs["hidden_out"]
