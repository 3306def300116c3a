"""Validating a bundle: every block and the whole pass on a backend, beside the eager model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import glm_trt
from glm_trt.model.errors import BundleError
from glm_trt.model.files import write_atomically
from glm_trt.validate.cases import make_cases
from glm_trt.validate.reference import Reference
from glm_trt.validate.report import Report, block_entry, end_to_end_entry, markdown
from glm_trt.validate.walk import start, start_prediction, walk_block


def validate_bundle(
    directory: Path,
    backend: str = "onnxruntime",
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Compare `backend` on the bundle with the eager model; the report's `ok` is the verdict.

    Parameters
    ----------
    checkpoint : where the checkpoint lies if it moved; for a materialized bundle, the checkpoint
        to compare with (without it, the bundle's own weights are the reference).

    Raises
    ------
    BundleError, CheckpointError
        If the bundle or its checkpoint is not sound.
    MissingCapabilityError
        If the backend cannot run here.
    """
    began = time.monotonic()
    progress("loading")
    moved = None if _is_materialized(directory) else checkpoint
    with glm_trt.load(directory, backend, checkpoint=moved) as runtime:
        bundle = runtime.bundle
        reference = Reference(bundle, checkpoint)
        progress("prompts")
        flows = [start(case) for case in make_cases(bundle, runtime)]
        results = []
        for block in bundle.blocks:
            progress(f"comparing {block.name}")
            results.append(walk_block(bundle, block, reference, runtime.backend, flows))
        dtype = runtime.backend.dtype
        end_to_end = end_to_end_entry(flows, results[-1], dtype)
        for block in bundle.prediction_blocks:
            progress(f"comparing {block.name}")
            if block.layer is not None:
                for flow in flows:
                    start_prediction(flow)
            results.append(walk_block(bundle, block, reference, runtime.backend, flows))
    blocks = [block_entry(result, dtype) for result in results]
    return {
        "format": "glm-trt validation",
        "format_version": 1,
        "ok": end_to_end["ok"] and all(block["ok"] for block in blocks),
        "bundle": str(directory),
        "bundle_key": bundle.manifest["key"],
        "backend": backend,
        "dtype": dtype,
        "reference": reference.source,
        "versions": {name: version(name) for name in ("glm-trt", "torch", backend)},
        "seconds": time.monotonic() - began,
        "cases": [
            {"name": flow.case.name, "shape": list(flow.case.ids.shape),
             "prefill": flow.case.prefill}
            for flow in flows
        ],
        "end_to_end": end_to_end,
        "blocks": blocks,
    }  # fmt: skip


def write_report(report: Report, directory: Path) -> None:
    """`report.json` and `report.md` in `directory`."""
    if directory.exists() and not directory.is_dir():
        raise BundleError(f"{directory}: exists and is not a directory")
    write_atomically(directory / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomically(directory / "report.md", markdown(report).encode())


def _is_materialized(directory: Path) -> bool:
    from glm_trt.export.manifest import read_manifest

    return bool(read_manifest(directory)["materialized"])
