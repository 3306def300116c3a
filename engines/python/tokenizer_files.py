"""Reading the JSON files of a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glm_trt.model.errors import BundleError
from glm_trt.model.files import what_it_is


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises `BundleError` if it holds none."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        known = what_it_is(path.read_bytes())
        raise BundleError(f"{path}: {known or f'not readable as JSON: {error}'}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_text(path: Path) -> str:
    """The text in `path`. Raises `BundleError` if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: expected UTF-8: {error}") from None
