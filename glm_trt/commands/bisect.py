"""`glm-trt bisect`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from glm_trt.commands.command import Command, add_paths, add_subject, validation_options


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, "BUNDLE")
    add_subject(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write a small reproducer there"
    )


def _run(options: argparse.Namespace) -> int:
    from glm_trt.progress import Progress

    settings = validation_options(options)
    # Now that there is what it imports.
    from glm_trt.validate.finding.bisect import bisect_bundle, describe_finding

    with Progress("bisect", quiet=options.json) as progress:
        report = bisect_bundle(options.bundle, settings, options.output, progress)
    print(json.dumps(report) if options.json else describe_finding(report))
    return 0 if report["ok"] else 1


COMMAND = Command(
    "bisect",
    "find the first block out of tolerance, and the operator in it that is wrong",
    "glm-trt bisect bundle --backend kernels -o reproducer",
    _add_arguments,
    _run,
)
