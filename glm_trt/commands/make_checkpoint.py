"""`glm-trt make-checkpoint`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from glm_trt.commands.command import Command, check_seed
from glm_trt.model.checkpoint.presets import PRESETS, SCALES
from glm_trt.model.quantization import PRECISIONS


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", choices=PRESETS, help=" or ".join(PRESETS))
    parser.add_argument(
        "--scale", choices=SCALES, default="tiny",
        help="tiny (default): small, random weights; block: one layer of each kind at the real "
        "sizes; full: all layers. The last two hold zeros that take no space on the disk",
    )  # fmt: skip
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the weights")
    parser.add_argument("--layers", type=int, metavar="N", help="only so many, from the first")
    parser.add_argument("--kind", metavar="KIND", help="only layers such as sparse_indexed")
    parser.add_argument("--without-mtp", action="store_true", help="no prediction layers")
    parser.add_argument(
        "--random", action="store_true", default=None,
        help="random weights at any scale, which take their full size",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random weights")


def _run(options: argparse.Namespace) -> int:
    from glm_trt.model.checkpoint.generate import CheckpointOptions, make_checkpoint

    check_seed(options)
    settings = CheckpointOptions(
        options.preset, options.scale, options.precision, options.layers, options.kind,
        not options.without_mtp, options.random, options.seed,
    )  # fmt: skip
    written = make_checkpoint(settings, options.output)
    if options.json:
        print(json.dumps(asdict(written) | {"directory": str(options.output)}))
        return 0
    print(
        f"{options.output}: {written.layers} layers, {written.tensors} tensors in {written.files} "
        f"file(s), {written.bytes / 1e6:,.1f} MB ({written.disk_bytes / 1e6:,.1f} MB on the disk)"
    )
    return 0


COMMAND = Command(
    "make-checkpoint",
    "write a checkpoint of a preset, to try things with",
    "glm-trt make-checkpoint glm-5.1-hybrid --scale block --precision fp8 -o checkpoint",
    _add_arguments,
    _run,
)
