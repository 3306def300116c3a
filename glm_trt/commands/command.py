"""What a subcommand is, and the arguments that several of them share."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_trt.model.errors import GlmTrtError
from glm_trt.model.requirements import require
from glm_trt.validate.running.names import SUBJECTS

DTYPES = ("float32", "bfloat16", "float16")
BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
PROVIDERS = ("cpu", "cuda", "tensorrt")


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Parameters
    ----------
    text : what it does, in a line of `glm-trt --help`.
    example : command lines that work as they stand, but for the names of files.
    add_arguments : declares its arguments; must import nothing that takes long.
    run : does it, and returns the exit code.
    """

    name: str
    text: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_paths(parser: argparse.ArgumentParser, *names: str) -> None:
    """Positional paths, kept under their names in small letters."""
    for name in names:
        parser.add_argument(name.lower(), metavar=name, type=Path)


def add_checkpoint(
    parser: argparse.ArgumentParser,
    help: str,
    name: str = "--checkpoint",
    metavar: str | None = None,
) -> None:
    """A checkpoint, by its directory or by its name on the hub, and its revision there."""
    parser.add_argument(name, type=_place, metavar=metavar, help=f"{help}; or its name on the hub")
    parser.add_argument(
        "--revision", metavar="R", help="branch, tag or commit on the hub (default: main)"
    )


def _place(text: str) -> Path:
    """A path; one that is written as no name is, as "./a/b", stays none."""
    path = Path(text)
    return path if str(path) == text or path.exists() else Path(os.path.abspath(text))


def find_checkpoint(
    options: argparse.Namespace, name: str = "checkpoint", config_only: bool = False
) -> Path | None:
    """The directory of what `add_checkpoint` declared, fetched from the hub where it is a name
    there; errors as in `glm_trt.model.checkpoint.hub`.
    """

    def say(text: str) -> None:
        if not options.json:
            print(f"glm-trt {options.command}: {text}", file=sys.stderr, flush=True)

    given: Path | None = getattr(options, name)
    if given is None:
        if options.revision is not None:
            raise GlmTrtError("--revision: goes with --checkpoint NAME")
        return None
    from glm_trt.model.checkpoint.hub import find_checkpoint

    return find_checkpoint(given, options.revision, config_only=config_only, say=say)


def add_provider(parser: argparse.ArgumentParser) -> None:
    """Which of onnxruntime's execution providers runs the graphs."""
    parser.add_argument(
        "--provider", choices=PROVIDERS,
        help="of the backend onnxruntime: cpu (default) in float32; cuda or tensorrt, which "
        "onnxruntime-gpu has, in the checkpoint's dtype",
    )  # fmt: skip


def add_subject(parser: argparse.ArgumentParser) -> None:
    """What is validated, and on what."""
    parser.add_argument(
        "--backend", choices=SUBJECTS, metavar="BACKEND",
        help="; ".join(f"{name}: {what}" for name, what in SUBJECTS.items())
        + " (default: onnxruntime; graph for a --dtype that onnxruntime has not)",
    )  # fmt: skip
    add_provider(parser)
    parser.add_argument(
        "--dtype", choices=(*DTYPES, "float64"), metavar="DTYPE",
        help="of graph, kernels and eager (default: the checkpoint's)",
    )  # fmt: skip
    add_checkpoint(
        parser,
        "where the checkpoint lies, if it moved; what a materialized bundle is compared with",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random ids")
    parser.add_argument(
        "--longest", type=int, metavar="N", help="tokens of the longest case (default: 768)"
    )


def validation_options(options: argparse.Namespace) -> Any:
    """`ValidationOptions` of what `add_subject` declared, and of `--text` where there is one.

    Raises MissingCapabilityError where the eager model cannot be run.
    """
    require(options.command, "validate", "torch", "onnxscript")
    from glm_trt.validate.running.cases import LONGEST, CaseOptions, read_text
    from glm_trt.validate.running.subjects import default_subject
    from glm_trt.validate.validation import ValidationOptions

    check_seed(options)
    longest = LONGEST if options.longest is None else options.longest
    if longest < 1:
        raise GlmTrtError(f"--longest: expected at least 1, found {longest}")
    text = getattr(options, "text", None)
    return ValidationOptions(
        options.backend or default_subject(options.dtype, options.provider),
        options.dtype,
        find_checkpoint(options),
        CaseOptions(longest, options.seed, None if text is None else read_text(text)),
        provider=options.provider,
    )


def check_seed(options: argparse.Namespace) -> None:
    """Raise for a seed below 0."""
    if options.seed < 0:
        raise GlmTrtError(f"--seed: expected 0 or more, found {options.seed}")


def add_judgement(parser: argparse.ArgumentParser) -> None:
    """How a report is judged, and where it is written."""
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write report.html, report.md and report.json"
    )
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="TOML that tightens limits or waives problems"
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="REPORT", help="fail where this earlier report was better"
    )


def check_report(options: argparse.Namespace) -> None:
    """Raise, before the work, where `--report` cannot be written."""
    from glm_trt.validate.reporting.report_files import check_report_place

    if options.report:
        check_report_place(options.report)


def print_report(report: dict[str, Any], options: argparse.Namespace) -> int:
    """Write and print a report; the exit code that it stands for."""
    from glm_trt.validate.reporting.report_files import write_report

    if options.report:
        write_report(report, options.report)
    return show_report(report, options)


def show_report(report: dict[str, Any], options: argparse.Namespace) -> int:
    """Print a report that is written already; the exit code that it stands for."""
    from glm_trt.validate.reporting.report_files import PAGE
    from glm_trt.validate.reporting.report_text import summary

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(json.dumps(report) if options.json else summary(report, columns))
    if options.report and not options.json:
        print(f"  report: {options.report / PAGE}")
    return 0 if report["ok"] else 1
