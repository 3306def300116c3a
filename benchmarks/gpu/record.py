"""The record of a bring-up: one JSON, checked against its schema, and a table of it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parent / "bring_up.schema.json"
GOOD = ("ok", "skipped")


def make_record(
    settings: dict[str, Any], versions: dict[str, str | None], entries: list[dict[str, Any]],
    began: str, seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """The record of these steps; `seconds` is what this run took."""
    device = next((e["measured"] for e in entries if e["name"] == "device" and e["measured"]), None)
    return {
        "format": "glm-trt gpu bring-up", "format_version": 1, "stand_ins": settings["stand_ins"],
        "began": began, "seconds": round(seconds, 1), "backend": settings["backend"],
        "library": settings["library"], "bundle": settings["bundle"], "versions": versions,
        "device": device, "ok": all(e["verdict"] in GOOD for e in entries), "steps": entries,
    }  # fmt: skip


def check_record(record: dict[str, Any]) -> str | None:
    """What the schema finds wrong with a record, None if nothing.

    Without jsonschema that is a sentence which says so, in parentheses.
    """
    if find_spec("jsonschema") is None:
        return "(not checked against its schema: jsonschema is not installed)"
    import jsonschema

    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    problems = sorted(validator.iter_errors(record), key=lambda e: list(map(str, e.absolute_path)))
    if not problems:
        return None
    first = problems[0]
    return f"{'/'.join(map(str, first.absolute_path)) or 'the record'}: {first.message}"


def table(record: dict[str, Any]) -> str:
    """The steps as lines of text."""
    lines = [f"{'step':<11}{'verdict':<11}{'seconds':>8}{'limit':>7}  found"]
    for e in record["steps"]:
        kept = " (kept)" if e["kept"] else ""
        lines.append(
            f"{e['name']:<11}{e['verdict']:<11}{e['seconds']:>8.1f}{e['limit_s']:>7}  "
            f"{e['line']}{kept}"
        )
    return "\n".join(lines)
