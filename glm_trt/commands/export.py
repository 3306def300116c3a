"""`glm-trt export`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from glm_trt.commands.command import DTYPES, Command, add_checkpoint, find_checkpoint


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, "its directory", "checkpoint", "CHECKPOINT")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, metavar="DTYPE",
        help="dtypes of the graphs beside float32 (default: the checkpoint's)",
    )  # fmt: skip
    parser.add_argument("--max-seq-len", type=int, metavar="N", help="longest sequence to serve")
    parser.add_argument(
        "--materialize", action="store_true", help="copy the weights into the bundle"
    )


def _run(options: argparse.Namespace) -> int:
    from glm_trt.export.bundle import ExportOptions, export_checkpoint
    from glm_trt.progress import Progress

    settings = ExportOptions(
        tuple(options.dtype) if options.dtype else None, options.max_seq_len, options.materialize
    )
    checkpoint = find_checkpoint(options)
    assert checkpoint is not None  # it is a positional argument
    with Progress("export", quiet=options.json) as progress:
        written = export_checkpoint(checkpoint, options.output, settings, progress)
    if options.json:
        print(json.dumps({"bundle": str(options.output), "written": written}))
    else:
        print(f"{options.output}: {'written' if written else 'up to date'}")
    return 0


COMMAND = Command(
    "export",
    "write a bundle from a checkpoint",
    "glm-trt export GLM-5.1 -o bundle --dtype bfloat16 --max-seq-len 131072\n"
    "glm-trt export zai-org/GLM-5.1 --revision main -o bundle",
    _add_arguments,
    _run,
)
