"""What a field of a file allows beyond its type, as a note in `Annotated`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rules:
    """Rules of JSON Schema; None sets none. `named`: the name under which a schema has the type."""

    named: str | None = None
    const: str | int | None = None
    choices: tuple[str, ...] | None = None
    minimum: int | None = None
    maximum: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    min_items: int | None = None
    max_items: int | None = None
    unique_items: bool | None = None

    def keywords(self) -> dict[str, Any]:
        """Those that are set, by their names in a schema."""
        found = {
            "const": self.const,
            "enum": None if self.choices is None else list(self.choices),
            "minimum": self.minimum,
            "maximum": self.maximum,
            "minLength": self.min_length,
            "maxLength": self.max_length,
            "pattern": self.pattern,
            "minItems": self.min_items,
            "maxItems": self.max_items,
            "uniqueItems": self.unique_items,
        }
        return {name: value for name, value in found.items() if value is not None}
