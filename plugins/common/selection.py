"""Which kernels a plugin library holds: all of them, or those that some graphs and targets need.

A selection is data that is derived from graphs, stored in the library and compared. Nothing here
loads torch or Triton.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from glm_trt.model.errors import MissingCapabilityError
from glm_trt.plugins.common.bounds import Bounds

# GPU architectures that kernels are compiled for.
TARGETS = ("sm80", "sm89", "sm90", "sm100", "sm120")


def target_for(capability: int) -> str:
    """The target whose kernels a device of this compute capability (89 for 8.9) runs.

    Up to 8.x, code for a lower minor version runs too; from 9.0 on it is for one chip alone.

    Raises
    ------
    MissingCapabilityError
        If there is none.
    """
    for target in reversed(TARGETS):
        ours = int(target.removeprefix("sm"))
        same_major = ours // 10 == capability // 10 and capability < 90
        if ours == capability or (same_major and ours <= capability):
            return target
    raise MissingCapabilityError(f"no kernels for sm{capability}; there are {', '.join(TARGETS)}")


@dataclass(frozen=True)
class TensorRange:
    """An input of a node: its dtype by name, and the bounds of each axis."""

    dtype: str
    axes: tuple[Bounds, ...]

    def covers(self, other: TensorRange) -> bool:
        """Whether each shape of `other` is one of these."""
        return self.dtype == other.dtype and len(self.axes) == len(other.axes) and all(
            low <= lower and upper <= high
            for (low, high), (lower, upper) in zip(self.axes, other.axes, strict=True)
        )  # fmt: skip


@dataclass(frozen=True)
class Use:
    """A node of an operator as far as it is known before it runs.

    Attributes
    ----------
    operator : the contract's name.
    inputs : None for an absent one.
    attributes : integers and strings, by name and in its order; no kernel depends on a float.
    """

    operator: str
    inputs: tuple[TensorRange | None, ...]
    attributes: tuple[tuple[str, int | str], ...]

    def covers(self, other: Use) -> bool:
        """Whether each call of `other` is one of these."""
        if (self.operator, self.attributes) != (other.operator, other.attributes):
            return False
        return len(self.inputs) == len(other.inputs) and all(
            a == b if a is None or b is None else a.covers(b)
            for a, b in zip(self.inputs, other.inputs, strict=True)
        )


@dataclass(frozen=True)
class Selection:
    """Kernels for `targets`; for what `uses` need, or for anything (None)."""

    targets: tuple[str, ...] = TARGETS
    uses: tuple[Use, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether these are all kernels that there are."""
        return self.uses is None and set(self.targets) == set(TARGETS)

    @property
    def name(self) -> str:
        """Short, for files: the targets, or a digest."""
        if self.uses is None:
            return "-".join(self.targets)
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def lacks(self, needed: Selection) -> str | None:
        """What of `needed` is not here, in words; None where all of it is."""
        if missing := [target for target in needed.targets if target not in self.targets]:
            return f"kernels for {', '.join(missing)}"
        if self.uses is None:
            return None
        if needed.uses is None:
            return "kernels for every size"
        for use in needed.uses:
            if not any(ours.covers(use) for ours in self.uses):
                dtypes = dict.fromkeys(of.dtype for of in use.inputs if of is not None)
                return f"kernels of {use.operator} ({', '.join(dtypes)}) for these sizes"
        return None

    def to_json(self) -> str:
        """The same selection always as the same text."""
        return json.dumps(
            {"targets": self.targets, "uses": self.uses and [_use_to_json(u) for u in self.uses]},
            sort_keys=True,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Selection:
        """What `to_json` wrote; ValueError, KeyError or TypeError for anything else."""
        content = json.loads(text)
        uses = content["uses"]
        return cls(
            tuple(content["targets"]),
            None if uses is None else tuple(_use_from_json(use) for use in uses),
        )


WHOLE = Selection()


def make_selection(targets: Iterable[str], uses: Iterable[Use]) -> Selection:
    """A selection in an order that does not depend on how it was found."""
    chosen = set(targets)
    ordered = sorted(set(uses), key=lambda use: json.dumps(_use_to_json(use), sort_keys=True))
    return Selection(tuple(target for target in TARGETS if target in chosen), tuple(ordered))


def _use_to_json(use: Use) -> dict[str, Any]:
    inputs = [None if of is None else {"dtype": of.dtype, "axes": of.axes} for of in use.inputs]
    return {"operator": use.operator, "inputs": inputs, "attributes": dict(use.attributes)}


def _use_from_json(content: Mapping[str, Any]) -> Use:
    inputs = tuple(
        None if of is None else TensorRange(of["dtype"], tuple((a, b) for a, b in of["axes"]))
        for of in content["inputs"]
    )
    return Use(content["operator"], inputs, tuple(sorted(content["attributes"].items())))
