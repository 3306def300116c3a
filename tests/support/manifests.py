"""Manifests of bundles as JSON, to be changed into what no dataclass would hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glm_trt.export.bundle.format import FILE_NAME
from glm_trt.export.bundle.records import to_json
from glm_trt.export.bundle.write import file_entry, seal


def manifest_json(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / FILE_NAME).read_bytes())
    return content


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let `change` edit the manifest, and seal it anew."""
    content = manifest_json(bundle)
    change(content)
    (bundle / FILE_NAME).write_bytes(seal(content))


def list_again(bundle: Path, *names: str) -> None:
    """List these files as they are now."""
    entries = {name: to_json(file_entry(bundle / name)) for name in names}
    edit_manifest(bundle, lambda manifest: manifest["files"].update(entries))
