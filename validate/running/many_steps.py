"""Decode steps of a linear layer, each chain behind its own states.

A state that is replaced as a whole is rounded at each step. One step shows little of that beside
the rounding of what is added; over many steps it gathers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.validate.judging.problem_kinds import Finding

if TYPE_CHECKING:
    from glm_trt.validate.running.walk import Runners

Arrays = dict[str, NDArray[Any]]
STEPS, STEP_ROWS = 64, 2


def has_many_steps(bundle: Bundle, block: Block) -> bool:
    """Whether `block` is the first of its kind, whose states have no entry a token: all of a kind
    run the same graph.
    """
    states = bundle.states(block) if block.layer is not None else ()
    first = next(x for x in (*bundle.blocks, *bundle.prediction_blocks) if x.kind == block.kind)
    return first.name == block.name and any(not spec.has_capacity for spec in states)


def run_many_steps(
    bundle: Bundle, block: Block, runners: Runners, tokens: NDArray[Any]
) -> tuple[dict[str, Arrays], dict[str, Arrays], list[Finding], Arrays]:
    """`tokens` [B, S, hidden] in the backend's dtype, one after another, behind states of zeros.

    Returns the outputs of each chain (of all steps [B, S, ...], states after the last), the scores
    of "exact" and "rounded" [B, S, ...], what was wrong with outputs of the backend, and the exact
    model's inputs of the last step.
    """
    batch, length, _ = tokens.shape
    zeros = {spec.name: np.zeros(spec.shape(batch, 1)) for spec in bundle.states(block)}
    chains = ("exact", "rounded", "found")
    states = dict.fromkeys(chains, zeros)
    steps: dict[str, list[Arrays]] = {chain: [] for chain in chains}
    scores: dict[str, list[Arrays]] = {"exact": [], "rounded": []}
    findings: list[Finding] = []
    inputs: dict[str, Arrays] = {}
    for i in range(length):
        fed = {"hidden": tokens[:, i : i + 1], "lengths": np.ones(batch, np.int64)}
        inputs = {
            chain: fed | runners.cast(states[chain], "float64" if chain == "exact" else None)
            for chain in chains
        }
        outputs, found = runners.run(inputs)
        findings += [finding for finding in found if finding not in findings]
        for chain, of in outputs.items():
            states[chain] = {name: of[f"{name}_out"] for name in zeros}
            kept = {name: x for name, x in of.items() if name.removesuffix("_out") not in zeros}
            steps[chain].append(_by_row(kept, batch))
        scores["exact"].append(_by_row(runners.exact.scores, batch))
        scores["rounded"].append(_by_row(runners.rounded.scores, batch))
    tensors = {
        chain: _joined(steps[chain]) | {f"{name}_out": x for name, x in states[chain].items()}
        for chain in chains
    }
    of_scores = {chain: _joined(of) for chain, of in scores.items()}
    return tensors, of_scores, findings, fed | runners.cast(inputs["exact"])


def _by_row(arrays: Arrays, batch: int) -> Arrays:
    """[B, 1, ·] of what is that or, of experts, [B, ·]."""
    return {name: array.reshape(batch, 1, -1) for name, array in arrays.items()}


def _joined(steps: list[Arrays]) -> Arrays:
    return {name: np.concatenate([step[name] for step in steps], axis=1) for name in steps[0]}
