"""From observations to what is reported: differences and choices, pooled block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.config import ModelConfig
from glm_trt.model.states import STATE_AXES, input_dtype
from glm_trt.validate.judging.choices import CHOSEN_BY, compare_choices
from glm_trt.validate.judging.compare import Choices, Difference
from glm_trt.validate.judging.partings import Parted, Partings, SetAside
from glm_trt.validate.judging.problem_kinds import Finding
from glm_trt.validate.judging.systematic import Systematic, regressors_of
from glm_trt.validate.running.cases import HELD_TEXT, Case
from glm_trt.validate.running.walk import CHAINS, Observation

Array = NDArray[Any]
Arrays = dict[str, Array]
TOP = 5


@dataclass
class Pair:
    """The backend's difference from the exact model beside that of the eager model in its dtype."""

    found: Difference
    rounded: Difference

    @classmethod
    def of(cls, dtype: str) -> Pair:
        """An empty one."""
        return cls(Difference(dtype), Difference(dtype))

    def add(self, tensors: Arrays, place: str, rows: Array | None = None) -> None:
        """Pool one tensor of the three chains."""
        self.found.add(tensors["found"], tensors["exact"], place, rows)
        self.rounded.add(tensors["rounded"], tensors["exact"], place, rows)


Pairs = dict[tuple[str, str], Pair]  # by output and phase


@dataclass
class BlockResult:
    """What was measured of one block: pairs by output and phase, choices by output.

    `systematic` are the errors of isolated runs on text, held against what was to come out.

    `parted` and `set_aside` are of the propagated pass: where chains chose otherwise, by output,
    and how many tokens are not compared for it.
    """

    name: str
    kind: str
    isolated: Pairs = field(default_factory=dict)
    systematic: dict[tuple[str, str], Systematic] = field(default_factory=dict)
    propagated: Pairs = field(default_factory=dict)
    choices: dict[str, Choices] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    parted: dict[str, Parted] = field(default_factory=dict)
    set_aside: SetAside = field(default_factory=SetAside)


@dataclass
class EndToEnd:
    """What was measured of the logits of all tokens, whether set aside or not."""

    tokens: int = 0
    top1: int = 0
    top5: float = 0.0
    divergence: list[float] = field(default_factory=list)
    rounded_divergence: list[float] = field(default_factory=list)
    greedy: dict[str, dict[str, Any]] = field(default_factory=dict)
    text: dict[str, float] | None = None


class Measures:
    """Pools observations, block after block in the order of a pass.

    Parameters
    ----------
    dtype : the backend's.
    kinds : block name → its kind.
    """

    def __init__(
        self, config: ModelConfig, dtype: str, cases: list[Case], kinds: dict[str, str]
    ) -> None:
        self.config, self.dtype, self.kinds = config, dtype, kinds
        self.cases = {case.name: case for case in cases}
        self.results: dict[str, BlockResult] = {}
        self.end_to_end = EndToEnd()
        self.partings = Partings(cases)

    def add(self, observation: Observation) -> None:
        """Pool one observation."""
        name = observation.block
        kind = self.kinds.get(name, name)
        result = self.results.setdefault(name, BlockResult(name, kind))
        if observation.mode == "weights":
            result.findings += observation.findings
        elif observation.mode == "propagated":
            self._add_propagated(result, observation)
        else:
            self._add_isolated(result, observation)

    def _add_isolated(self, result: BlockResult, seen: Observation) -> None:
        tensors, place = seen.tensors, seen.place
        rows = seen.rows
        # Positions first: a token that attends elsewhere is routed elsewhere.
        for name in CHOSEN_BY:
            if name not in tensors["exact"]:
                continue
            pooled = result.choices.setdefault(name, Choices())
            counted = None if rows is None else rows.ravel()
            equal = compare_choices(
                self.config, name, tensors, (seen.scores["exact"], seen.scores["rounded"]),
                pooled, place, counted,
            )  # fmt: skip
            shape = tensors["exact"]["hidden_out"].shape[:-1]
            rows = equal.reshape(shape) if rows is None else rows & equal.reshape(shape)
        result.findings += [x._replace(text=f"{x.text}, {place}") for x in seen.findings]
        for name in tensors["exact"].keys() - CHOSEN_BY.keys():
            of_chains = {chain: tensors[chain][name] for chain in CHAINS}
            mask = state_mask(name, seen.rows) if is_state(name) else rows
            key = (name, seen.phase)
            pair = Pair.of(output_dtype(name, self.dtype))
            result.isolated.setdefault(key, pair).add(of_chains, place, mask)
            if seen.mode == "isolated":
                regressors = regressors_of(name, of_chains["exact"], seen.scores["exact"])
                result.systematic.setdefault(key, Systematic()).add(
                    of_chains, regressors, mask, channels=name == "hidden_out"
                )

    def _add_propagated(self, result: BlockResult, seen: Observation) -> None:
        result.findings += [x._replace(text=f"{x.text}, {seen.case}") for x in seen.findings]
        parted = self.partings.add(seen, result.parted, result.set_aside)
        rows = ~parted if seen.rows is None else ~parted & seen.rows
        for name in seen.tensors["exact"].keys() - CHOSEN_BY.keys():
            for phase, part in (("prefill", slice(0, seen.prefill)),
                                ("decode", slice(seen.prefill, None))):  # fmt: skip
                tensors = {chain: seen.tensors[chain][name][:, part] for chain in CHAINS}
                if tensors["exact"].shape[1]:
                    pair = result.propagated.setdefault((name, phase), Pair.of(self.dtype))
                    pair.add(tensors, f"{seen.case}, {phase}", rows[:, part])
        if seen.block == "head":
            self._add_logits(seen, parted)

    def _add_logits(self, seen: Observation, parted: Array) -> None:
        end, case = self.end_to_end, self.cases[seen.case]
        exact, rounded, found = (
            seen.tensors[chain]["logits"].astype(np.float64) for chain in CHAINS
        )
        if seen.rows is not None:
            exact, rounded, found = (x[seen.rows][None] for x in (exact, rounded, found))
        end.tokens += exact.shape[0] * exact.shape[1]
        end.top1 += int((exact.argmax(-1) == found.argmax(-1)).sum())
        best = [np.argpartition(-x, TOP, -1)[..., :TOP] for x in (exact, found)]
        end.top5 += float((best[0][..., None] == best[1][..., None, :]).any(-1).sum()) / TOP
        end.divergence += divergence(exact, found).ravel().tolist()
        end.rounded_divergence += divergence(exact, rounded).ravel().tolist()
        if case.continued:
            end.greedy[case.name] = _greedy(case, exact, rounded, found, parted)
        if case.name == HELD_TEXT:
            end.text = {"tokens": float(exact.shape[1] - 1)} | {
                chain: _perplexity(x, case.ids)
                for chain, x in zip(CHAINS, (exact, rounded, found), strict=True)
            }


def output_dtype(name: str, dtype: str) -> str:
    """That of the floating output `name` of a block in `dtype`."""
    return input_dtype(name.removesuffix("_out"), dtype)


def is_state(name: str) -> bool:
    """Whether an output of a block is an updated state."""
    return name.removesuffix("_out") in STATE_AXES


def state_mask(name: str, rows: Array | None) -> Array | None:
    """Which rows of a state count, of tokens [B, S] that do: [B, 1, S] where it has an entry a
    token, else all.
    """
    has_capacity = "capacity" in STATE_AXES[name.removesuffix("_out")]
    return rows[:, None] if rows is not None and has_capacity else None


def _greedy(case: Case, exact: Array, rounded: Array, found: Array, parted: Array
) -> dict[str, Any]:  # fmt: skip
    """The backend's choice of each token after the prompt, beside the exact model's."""
    first = case.prefill - 1
    steps = case.ids.shape[1] - case.prefill
    until, near_ties, wrong = steps, 0, list[dict[str, Any]]()
    for step in range(steps):
        at = first + step
        best, chosen = int(exact[0, at].argmax()), int(found[0, at].argmax())
        if best == chosen:
            continue
        until = min(until, step)
        noise = float(np.abs(rounded[0, at] - exact[0, at]).max())
        gap = float(exact[0, at, best] - exact[0, at, chosen])
        if parted[0, at] or gap <= 2 * noise:
            near_ties += 1
        else:
            wrong.append({"token": at + 1, "expected": best, "found": chosen, "gap": gap})
    return {"tokens": steps, "until_divergence": until, "near_ties": near_ties, "wrong": wrong}


def _log_probabilities(x: Array) -> Array:
    with np.errstate(invalid="ignore"):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(exact: Array, found: Array) -> Array:
    """KL(exact ‖ found) of each token, in nats."""
    with np.errstate(invalid="ignore"):
        p, q = _log_probabilities(exact), _log_probabilities(found)
        return np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)


def _perplexity(logits: Array, ids: Array) -> float:
    """Of ids [1, S], each from the second on."""
    following = np.take_along_axis(_log_probabilities(logits)[:, :-1], ids[:, 1:, None], -1)
    return float(np.exp(-following.mean()))
