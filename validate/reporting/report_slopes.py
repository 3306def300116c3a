"""Gains and biases in a report: the slope of each kind of block that takes most of its limit."""

from __future__ import annotations

from typing import NamedTuple

from glm_trt.validate.judging.figures import Report
from glm_trt.validate.judging.systematic import BIAS, CHANNEL, ITSELF, UPDATE


class WorstSlope(NamedTuple):
    """Of the slopes of one name in all blocks of a kind, the one that takes most of its limit.

    Attributes
    ----------
    kind : of block.
    of : what errors were held against, for people.
    share : how much of what is allowed the slope takes, 1 for all.
    found, dtype, lowest, highest : the backend's, that of the dtype, and the limits.
    place : the block, output and phase.
    counted : how many slopes there are, all channels of an output as one.
    """

    kind: str
    of: str
    share: float
    found: float
    dtype: float
    lowest: float
    highest: float
    place: str
    counted: int

    @property
    def ok(self) -> bool:
        """Whether it is within its limits."""
        return self.share <= 1


def worst_slopes(report: Report) -> list[WorstSlope]:
    """By kind of block, in the order of a pass, and by what errors were held against."""
    worst: dict[tuple[str, str], WorstSlope] = {}
    for block in report["blocks"]:
        for output, phases in block["systematic"].items():
            for phase, slopes in phases.items():
                for name, slope in slopes.items():
                    of = said(name)
                    key = (block["kind"], of)
                    place = f"{block['name']} {output}, {phase}"
                    if name.startswith(CHANNEL):
                        place += f", channel {name.removeprefix(CHANNEL).strip()}"
                    limit = slope["highest"] if slope["found"] > 0 else slope["lowest"]
                    this = WorstSlope(
                        *key, abs(slope["found"] / limit), slope["found"], slope["dtype"],
                        slope["lowest"], slope["highest"], place, 1,
                    )  # fmt: skip
                    other = worst.get(key, this._replace(counted=0))
                    larger = max(other, this, key=lambda x: x.share)
                    worst[key] = larger._replace(counted=other.counted + 1)
    kinds = list(dict.fromkeys(kind for kind, _ in worst))
    return sorted(worst.values(), key=lambda x: kinds.index(x.kind))


def said(name: str) -> str:
    """What the slope `name` of a report is of, for people; all channels alike."""
    if name.startswith(CHANNEL):
        return "bias of one channel"
    if name == BIAS:
        return "bias"
    what = {UPDATE: "all that is added", ITSELF: "the output itself", "mlp": "the MLP"}
    return f"gain of {what.get(name, name.replace('_', ' '))}"


def worst_of_kinds(report: Report) -> list[WorstSlope]:
    """Of each kind of block the slope that takes most of its limit, and how many slopes it has."""
    kinds: dict[str, list[WorstSlope]] = {}
    for slope in worst_slopes(report):
        kinds.setdefault(slope.kind, []).append(slope)
    return [
        max(of, key=lambda x: x.share)._replace(counted=sum(x.counted for x in of))
        for of in kinds.values()
    ]


def slopes_line(report: Report) -> str:
    """How many slopes there are, and how much of its limit the worst takes."""
    kinds = worst_of_kinds(report)
    if not kinds:
        return "not judged: too few tokens"
    worst = max(kinds, key=lambda x: x.share)
    counted = sum(x.counted for x in kinds)
    return (f"{counted:,} judged; the worst takes {part(worst.share)} of its limit: {worst.of}, "
            f"{worst.place}")  # fmt: skip


def part(share: float) -> str:
    """Of a limit, which a slope of 1 takes whole."""
    return f"{100 * share:.0f} %" if share < 10 else f"{share:,.0f} ×"
