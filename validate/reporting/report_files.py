"""Writing a report as JSON, Markdown and a page; reading and checking the JSON."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from glm_trt.model.errors import GlmTrtError
from glm_trt.model.files import explain, write_atomically
from glm_trt.model.requirements import require
from glm_trt.model.strict_json import parse_json
from glm_trt.validate.judging.figures import Report
from glm_trt.validate.reporting.report_text import markdown

FORMAT, FORMAT_VERSION = "glm-trt validation", 4
JSON, MARKDOWN, PAGE = "report.json", "report.md", "report.html"


class ReportError(GlmTrtError):
    """A report that cannot be written, or a file that is none."""


def schema() -> dict[str, Any]:
    """The published JSON Schema of a report."""
    file = files("glm_trt.validate.reporting").joinpath("report.schema.json")
    text = file.read_text(encoding="utf-8")
    return json.loads(text)


@cache
def _validator() -> jsonschema.protocols.Validator:
    return jsonschema.Draft202012Validator(schema())


def check_report_place(directory: Path) -> None:
    """Whether a report can be written there, before anything else is done.

    Raises
    ------
    ReportError
        If something else than a directory has the name.
    MissingCapabilityError
        If matplotlib, which draws the pictures, is not installed.
    """
    if directory.exists() and not directory.is_dir():
        raise ReportError(f"--report {directory}: expected a directory, found a file")
    require("--report", "charts", "matplotlib")


def write_report(report: Report, directory: Path) -> None:
    """`report.json`, `report.md` and `report.html` in `directory`, each whole or as it was.

    Raises
    ------
    ReportError
        If they cannot be written.
    """
    from glm_trt.validate.reporting.report_page import page

    contents = {
        JSON: json.dumps(report, indent=1, allow_nan=False) + "\n",
        MARKDOWN: markdown(report),
        PAGE: page(report),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(explain(directory, error)) from error
    for name, text in contents.items():
        write_atomically(directory / name, text.encode())


def read_report(path: Path) -> Report:
    """The report in `path`, a JSON file or a directory that holds `report.json`.

    Raises
    ------
    ReportError
        If it is not a report of this version.
    """
    if path.is_dir():
        path = path / JSON
    try:
        report = parse_json(path.read_bytes())
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ReportError(f"{path}: not JSON: {error}") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise ReportError(f"{path}: not a report of glm-trt validate")
    if report.get("format_version") != FORMAT_VERSION:
        raise ReportError(
            f"{path}: format version: expected {FORMAT_VERSION}, found "
            f"{report.get('format_version')}; validate again"
        )
    for failure in _validator().iter_errors(report):
        raise ReportError(f"{path}: {failure.json_path}: {failure.message[:200]}")
    return report
