"""Tokens of the propagated pass in which a chain has parted from the exact model.

There each chain is fed what it made itself. A choice made otherwise changes all that comes behind
it, by more than rounding explains: that token, and those after it in its sequence, are set aside.
Who parted is told apart: a backend that parts more often than the eager model in its dtype would
otherwise take from comparison what it does wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.validate.judging.choices import CHOSEN_BY

if TYPE_CHECKING:
    from glm_trt.validate.running.cases import Case
    from glm_trt.validate.running.walk import Observation

Tokens = NDArray[np.bool_]
CHAINS = ("found", "rounded")


@dataclass
class Parted:
    """One choice of one block in the propagated pass.

    Attributes
    ----------
    tokens : in which no chain had parted before, so that all three were to choose alike.
    found, rounded : how many of those the backend, and the eager model in its dtype, chose
        otherwise in than the exact model.
    """

    tokens: int = 0
    found: int = 0
    rounded: int = 0


@dataclass
class SetAside:
    """How many tokens are not compared behind a block: all, and by whom (both may have parted)."""

    tokens: int = 0
    found: int = 0
    rounded: int = 0


class Partings:
    """What has parted so far in each case, block after block."""

    def __init__(self, cases: list[Case]) -> None:
        # Tokens [B, S] of which a chain parted in an earlier block, or which follow such a token.
        self._before = {
            case.name: {chain: np.zeros(case.ids.shape, bool) for chain in CHAINS} for case in cases
        }

    def add(self, seen: Observation, pooled: dict[str, Parted], aside: SetAside) -> Tokens:
        """Pool what a block chose in a case, by output; the tokens [B, S] that are set aside."""
        parted = {chain: before.copy() for chain, before in self._before[seen.case].items()}
        at_risk = ~_either(parted)
        if seen.rows is not None:
            at_risk &= seen.rows
        # In this order: a token that attends elsewhere is routed elsewhere.
        for name in CHOSEN_BY:
            if name not in seen.tensors["exact"]:
                continue
            unlike = {chain: _unlike(seen.tensors, chain, name) for chain in CHAINS}
            of = pooled.setdefault(name, Parted())
            of.tokens += int(at_risk.sum())
            of.found += int((unlike["found"] & at_risk).sum())
            of.rounded += int((unlike["rounded"] & at_risk).sum())
            at_risk &= ~_either(unlike)
            for chain in CHAINS:
                parted[chain] |= unlike[chain]
        if seen.rows is not None:
            for of_chain in parted.values():
                of_chain &= seen.rows
        set_aside = _either(parted)
        aside.tokens += int(set_aside.sum())
        aside.found += int(parted["found"].sum())
        aside.rounded += int(parted["rounded"].sum())
        self._before[seen.case] = {
            chain: np.logical_or.accumulate(of_chain, axis=1) for chain, of_chain in parted.items()
        }
        return set_aside


def _either(parted: dict[str, Tokens]) -> Tokens:
    return parted["found"] | parted["rounded"]


def _unlike(tensors: dict[str, dict[str, NDArray[Any]]], chain: str, name: str) -> Tokens:
    """Tokens [B, S] in which a chain chose another set than the exact model."""
    unlike: Tokens = (np.sort(tensors[chain][name]) != np.sort(tensors["exact"][name])).any(-1)
    return unlike
