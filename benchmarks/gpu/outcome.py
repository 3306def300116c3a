"""What a step of the bring-up finds: a verdict, a line of words, what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Settings:
    """What every step is given; paths are absolute.

    `output` is the folder of the results, where a step may leave files for those after it.
    """

    output: Path
    library: Path
    bundle: Path
    backend: str
    stand_ins: bool
    lean: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """For another process."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Settings:
        """The reverse of `as_json`."""
        paths = {k: Path(value[k]) for k in ("output", "library", "bundle")}
        lean = Path(value["lean"]) if value["lean"] else None
        return cls(**{**value, **paths, "lean": lean})


@dataclass(frozen=True)
class Outcome:
    """`line` says in a few words what was found; `problems`, if any, make the verdict WRONG."""

    line: str
    measured: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Skipped(Exception):
    """The step cannot be done here; the text says what is missing."""
