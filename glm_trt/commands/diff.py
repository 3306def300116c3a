"""`glm-trt diff`."""

from __future__ import annotations

import argparse

from glm_trt.commands.command import (
    Command,
    add_judgement,
    add_paths,
    check_report,
    print_report,
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, "A", "B")
    add_judgement(parser)


def _run(options: argparse.Namespace) -> int:
    from glm_trt.validate.diff import DiffOptions, diff_runs

    check_report(options)
    report = diff_runs(options.a, options.b, DiffOptions(options.policy, options.baseline))
    return print_report(report, options)


COMMAND = Command(
    "diff",
    "judge and compare two runs saved by validate --save",
    "glm-trt diff run-here run-there --report report",
    _add_arguments,
    _run,
)
