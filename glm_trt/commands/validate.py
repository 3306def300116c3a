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
    show_report,
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
    parser.add_argument(
        "--if-changed",
        action="store_true",
        help="take what is in --report if it passed and nothing has changed since",
    )


def _run(options: argparse.Namespace) -> int:
    from glm_trt.model.errors import GlmTrtError
    from glm_trt.progress import Progress

    settings = replace(
        validation_options(options), policy=options.policy, baseline=options.baseline,
        save=options.save,
    )  # fmt: skip
    check_report(options)
    # Now that there is what they import.
    from glm_trt.validate.reporting.kept_report import keep_report, kept_report, validation_key
    from glm_trt.validate.saving.polygraphy_files import is_installed
    from glm_trt.validate.validation import validate_bundle

    key = None
    if options.if_changed:
        if options.report is None:
            raise GlmTrtError("--if-changed: expected --report, which says what there was")
        key = validation_key(options.bundle, settings)
        if (kept := kept_report(options.report, key)) is not None:
            print(
                f"validate: {options.report} is of {kept['created']}, and nothing has changed",
                file=sys.stderr,
            )
            return show_report(kept, options)
    with Progress("validate", quiet=options.json) as progress:
        report = validate_bundle(options.bundle, settings, progress)
    if options.save and not is_installed():
        print(
            f"{options.save}: without files for Polygraphy, which is not installed: "
            "pip install 'glm-trt[validate]'",
            file=sys.stderr,
        )
    code = print_report(report, options)
    if key is not None:
        keep_report(options.report, key)
    return code


COMMAND = Command(
    "validate",
    "compare a bundle with the eager model",
    "glm-trt validate bundle --report report\n"
    "glm-trt validate bundle --backend kernels --dtype bfloat16 --save run",
    _add_arguments,
    _run,
)
