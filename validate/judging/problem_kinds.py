"""What can be wrong, by name: a policy's rule tells problems apart by it, and so does a report."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class ProblemKind(StrEnum):
    """What a problem is. Some are a matter of degree (`is_of_degree`): more may be accepted than a
    limit allows. The others are broken whatever is accepted elsewhere, so that a waiver has to name
    them.
    """

    ERROR = "error"  # a finite error beyond its limit
    SYSTEMATIC = "systematic"  # a gain or a bias beyond its limit
    CHOICES = "choices"  # other choices than rounding explains
    NEAR_TIES = "near ties"  # more of them than the dtype has
    GREEDY = "greedy"  # another token than rounding explains
    NOT_FINITE = "not finite"
    IMPOSSIBLE = "impossible choices"  # indices that do not exist, twice, or too few
    MISSING = "missing"  # an output that is not there, or of another shape
    CANNOT_RUN = "cannot be run"
    OVERWRITTEN = "overwritten"  # positions of a state that were to be kept
    WEIGHTS = "weights"  # not those of the checkpoint
    GRAPHS = "graphs"  # not those that this version exports, and values differ
    REFERENCE = "reference"  # the yardstick itself differs from an independent model
    LIMIT = "limit"  # of the policy's own [end_to_end], which nothing waives

    @property
    def is_of_degree(self) -> bool:
        """Whether a waiver that names no problem is about it too."""
        return self in _OF_DEGREE


_OF_DEGREE = frozenset(
    {ProblemKind.ERROR, ProblemKind.SYSTEMATIC, ProblemKind.CHOICES, ProblemKind.NEAR_TIES,
     ProblemKind.GREEDY}
)  # fmt: skip
# Those that have a ratio, up to which they may be waived.
MEASURED = frozenset({ProblemKind.ERROR, ProblemKind.SYSTEMATIC, ProblemKind.NEAR_TIES})


class Finding(NamedTuple):
    """What is wrong with an output other than how far its numbers are off."""

    output: str
    text: str
    kind: ProblemKind
