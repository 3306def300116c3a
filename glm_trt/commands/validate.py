"""`glm-trt validate`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from glm_trt.commands.command import (
    Command,
    add_judgement,
    add_paths,
    add_subject,
    check_report,
    print_report,
    validation_options,
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, "BUNDLE")
    add_subject(parser)
    add_judgement(parser)
    parser.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="keep what was seen, for glm-trt diff and Polygraphy",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="measure the perplexity on this text"
    )


def _run(options: argparse.Namespace) -> int:
    from glm_trt.progress import Progress

    settings = replace(
        validation_options(options), policy=options.policy, baseline=options.baseline,
        save=options.save,
    )  # fmt: skip
    check_report(options)
    # Now that there is what they import.
    from glm_trt.validate.polygraphy_files import is_installed
    from glm_trt.validate.validation import validate_bundle

    with Progress("validate", quiet=options.json) as progress:
        report = validate_bundle(options.bundle, settings, progress)
    if options.save and not is_installed():
        print(
            f"{options.save}: without files for Polygraphy, which is not installed: "
            "pip install 'glm-trt[validate]'",
            file=sys.stderr,
        )
    return print_report(report, options)


COMMAND = Command(
    "validate",
    "compare a bundle with the eager model",
    "glm-trt validate bundle --report report\n"
    "glm-trt validate bundle --backend kernels --dtype bfloat16 --save run",
    _add_arguments,
    _run,
)
