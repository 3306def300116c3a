"""`glm-trt plan`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from glm_trt.commands.command import Command, add_checkpoint, find_checkpoint
from glm_trt.model.checkpoint.presets import PRESETS
from glm_trt.model.quantization import PRECISIONS


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    sources = f"a checkpoint directory, a config.json, or {' or '.join(PRESETS)}"
    add_checkpoint(parser, sources, "source", "CHECKPOINT_OR_CONFIG")
    parser.add_argument("--gpu", nargs="+", metavar="h200", help="GPUs to consider (default: all)")
    parser.add_argument("--context", nargs="+", type=int, metavar="N", help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences at once")
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, metavar="|".join(PRECISIONS),
        help="of the weights (default: all, or the checkpoint's where it is quantised)",
    )  # fmt: skip
    parser.add_argument("--mtp", action="store_true", help="hold and read the MTP layers too")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg|png", help="draw memory by context")


def _run(options: argparse.Namespace) -> int:
    from glm_trt.engines.planning.chart import check_chart, write_chart
    from glm_trt.engines.planning.plan import PlanOptions, make_plan
    from glm_trt.engines.planning.source import find_source
    from glm_trt.plan_text import print_plan

    if options.chart:
        check_chart(options.chart)
    found = find_checkpoint(options, "source", config_only=True)
    assert found is not None  # it is a positional argument
    source = find_source(found, None if found == options.source else str(options.source))
    settings = PlanOptions(
        tuple(options.gpu) if options.gpu else None,
        tuple(options.context) if options.context else None,
        options.batch,
        tuple(options.precision) if options.precision else None,
        options.mtp,
    )
    plan = make_plan(source, settings)
    if options.chart:
        write_chart(options.chart, source, plan)
    if options.json:
        print(json.dumps(plan))
        return 0
    print_plan(plan)
    if options.chart:
        print(f"\n{options.chart}: written")
    return 0


COMMAND = Command(
    "plan",
    "say what a model needs: memory, GPUs, disk, and a bound on its speed",
    "glm-trt plan glm-5.1 --gpu h200 b200 --context 98000 --precision fp8",
    _add_arguments,
    _run,
)
