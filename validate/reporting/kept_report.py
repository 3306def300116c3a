"""A report that is kept: what passed is not validated again while nothing of it has changed."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from glm_trt.export.bundle.format import FILE_NAME
from glm_trt.model.files import sha256_of, write_atomically
from glm_trt.validate.judging.figures import Report
from glm_trt.validate.reporting.report_files import JSON, MARKDOWN, PAGE, read_report
from glm_trt.validate.running.cases import held_text
from glm_trt.validate.running.environment import describe_environment
from glm_trt.validate.validation import ValidationOptions, open_bundle

KEY = "report.key"
PACKAGE = Path(__file__).resolve().parent.parent
FOLDERS = ("model", "plugins", "export", "engines", "validate")  # what a verdict is made by
SOURCES = (".py", ".json", ".jinja", ".txt")


def validation_key(directory: Path, options: ValidationOptions) -> str | None:
    """A digest of all that a verdict depends on: every byte of bundle, checkpoint, policy, baseline
    and text, the options, this package's sources, the versions of others, the machine. None on a
    GPU, whose driver is not looked at, where the run is to be saved, and where weights are too
    large to be hashed, which the manifest shows.

    Raises
    ------
    BundleError, CheckpointError
        If the bundle or its checkpoint is not sound.
    """
    on_gpu = options.backend.startswith("tensorrt") or options.provider not in (None, "cpu")
    if on_gpu or options.save:
        return None
    bundle = open_bundle(directory, options.checkpoint)
    if any(shard.sha256 is None for shard in bundle.manifest.checkpoint.files):
        return None
    digest = hashlib.sha256(repr(asdict(options)).encode())
    digest.update(repr((held_text(options.cases), describe_environment(bundle))).encode())
    files = [directory / FILE_NAME]  # which has the hashes of the others, as they were found
    for place in {bundle.weights_directory, options.checkpoint or bundle.weights_directory}:
        files += sorted(p for p in place.iterdir() if p.suffix in (".json", ".safetensors"))
    files += filter(None, (options.policy, options.baseline))
    for folder in FOLDERS:
        root = PACKAGE / folder
        files += sorted(p for p in root.rglob("*") if p.suffix in SOURCES and p.is_file())
    for path in files:
        if path.is_dir():  # a baseline's
            path = path / JSON
        digest.update(f"{path} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def keep_report(place: Path, key: str | None) -> None:
    """Say beside the report in `place` what it is of."""
    if key is not None:
        write_atomically(place / KEY, _line(place, key).encode())


def kept_report(place: Path, key: str | None) -> Report | None:
    """The report in `place` if it passed, is of this very key, and is as it was written."""
    path = place / KEY
    names = (KEY, JSON, MARKDOWN, PAGE)
    if key is None or not all((place / name).is_file() for name in names):
        return None
    if path.read_text() != _line(place, key):
        return None
    report = read_report(place)
    return report if report["ok"] else None


def _line(place: Path, key: str) -> str:
    return " ".join([key, *(sha256_of(place / name) for name in (JSON, MARKDOWN, PAGE))])
