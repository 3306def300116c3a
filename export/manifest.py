"""The manifest of a bundle: what it holds, hash by hash. Checked against its schema on load.

`manifest.json` carries its own SHA-256: the digest of its bytes with the digest itself written as
zeros. So one changed byte anywhere, white space included, is noticed.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from glm_trt.model.errors import BundleError
from glm_trt.model.files import sha256_of, write_atomically
from glm_trt.model.strict_json import RepeatedName, parse_json

FILE_NAME = "manifest.json"
FORMAT, FORMAT_VERSION = "glm-trt bundle", 5
_NO_DIGEST = "0" * 64

Manifest = dict[str, Any]


def schema() -> dict[str, Any]:
    """The published JSON Schema of the manifest."""
    text = files("glm_trt.export").joinpath("manifest.schema.json").read_text(encoding="utf-8")
    return json.loads(text)


@cache
def _validator() -> jsonschema.protocols.Validator:
    return jsonschema.Draft202012Validator(schema())


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Validate, seal with the digest and write `bundle/manifest.json`."""
    jsonschema.validate({**manifest, "sha256": _NO_DIGEST}, schema())
    blank = json.dumps({"sha256": _NO_DIGEST} | manifest, indent=1, ensure_ascii=False).encode()
    digest = hashlib.sha256(blank).hexdigest()
    write_atomically(bundle / FILE_NAME, blank.replace(_NO_DIGEST.encode(), digest.encode(), 1))


def read_manifest(bundle: Path) -> Manifest:
    """`bundle/manifest.json`, checked: format, version, digest, schema.

    The returned mapping has no "sha256" field. Raises `BundleError`.
    """
    path = bundle / FILE_NAME
    try:
        data = path.read_bytes()
        manifest = parse_json(data)
    except FileNotFoundError:
        raise BundleError(f"{path}: not found; {bundle} is not a finished bundle") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    except RepeatedName as error:
        raise BundleError(f"{path}: {error.name}: listed twice") from None
    except ValueError as error:
        raise BundleError(f"{path}: not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path}: not the manifest of a glm-trt bundle")
    if manifest.get("format_version") != FORMAT_VERSION:
        version = manifest.get("format_version")
        number = version if type(version) is int else "no number"
        raise BundleError(
            f"{path}: format version: expected {FORMAT_VERSION}, found {number}; export again"
        )
    found = manifest.get("sha256")
    blank = data.replace(str(found).encode(), _NO_DIGEST.encode(), 1)
    expected = hashlib.sha256(blank).hexdigest()
    if found != expected:
        raise BundleError(f"{path}: altered: its SHA-256 is not the one that it says")
    failures = sorted(
        (error.json_path, str(error.validator)) for error in _validator().iter_errors(manifest)
    )
    if failures:
        place, rule = failures[0]
        raise BundleError(f"{path}: {place}: breaks the manifest's schema ({rule})")
    del manifest["sha256"]
    return manifest


def file_entry(path: Path) -> dict[str, Any]:
    """Size and hash of a file, as the manifest lists them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def verify_files(bundle: Path, manifest: Manifest) -> None:
    """Compare every listed file of the bundle with its size and hash."""
    for name, entry in manifest["files"].items():
        verify_file(bundle / name, entry)


def verify_file(path: Path, entry: dict[str, Any]) -> None:
    """Raise `BundleError` unless `path` has the listed size and SHA-256 (where one is listed)."""
    if not path.is_file():
        raise BundleError(f"{path}: missing, though the manifest lists it")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise BundleError(f"{path}: expected {entry['bytes']} bytes, found {size}")
    if entry["sha256"] is not None and (found := sha256_of(path)) != entry["sha256"]:
        raise BundleError(f"{path}: altered: expected SHA-256 {entry['sha256']}, found {found}")
