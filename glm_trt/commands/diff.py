"""`glm-trt diff`."""

from __future__ import annotations

import argparse
import json

from glm_trt.commands.command import (
    Command,
    add_judgement,
    add_paths,
    check_report,
    print_report,
)
from glm_trt.model.errors import GlmTrtError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, "A", "B")
    add_judgement(parser)


def _run(options: argparse.Namespace) -> int:
    from glm_trt.validate.saving.diff import DiffOptions, diff_runs

    if options.a.is_file() or options.b.is_file():
        return _diff_results(options)
    check_report(options)
    report = diff_runs(options.a, options.b, DiffOptions(options.policy, options.baseline))
    return print_report(report, options)


def _diff_results(options: argparse.Namespace) -> int:
    from glm_trt.validate.saving.polygraphy_diff import describe_results, diff_results

    for name in ("report", "policy", "baseline"):
        if getattr(options, name):
            raise GlmTrtError(f"--{name}: for saved runs, not for files of Polygraphy's results")
    report = diff_results(options.a, options.b)
    print(json.dumps(report) if options.json else describe_results(report))
    return 0 if report["ok"] else 1


COMMAND = Command(
    "diff",
    "judge and compare two runs saved by validate --save, or two files of Polygraphy's results",
    "glm-trt diff run-here run-there --report report\n"
    "glm-trt diff run/polygraphy/layer.0.json outputs.json",
    _add_arguments,
    _run,
)
