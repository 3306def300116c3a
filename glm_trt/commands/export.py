"""`glm-trt export`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from glm_trt.commands.command import DTYPES, Command, add_checkpoint, find_checkpoint
from glm_trt.model.errors import GlmTrtError


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


def _say_of_text(checkpoint: Path) -> None:
    """Say now, not when the bundle is run, that its tokenizer cannot be used."""
    from glm_trt.engines.python.text import TOKENIZER, Text
    from glm_trt.model.checkpoint.read import tokenizer_files

    files = {path.relative_to(checkpoint).as_posix(): path for path in tokenizer_files(checkpoint)}
    if TOKENIZER not in files:
        return  # as some checkpoints are
    try:
        Text.of_files(files, str(checkpoint))
    except GlmTrtError as error:
        print(
            "glm-trt export: the bundle can be built and validated, but not run from Python: "
            f"{error}",
            file=sys.stderr,
        )


def _run(options: argparse.Namespace) -> int:
    from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
    from glm_trt.progress import Progress

    settings = ExportOptions(
        tuple(options.dtype) if options.dtype else None, options.max_seq_len, options.materialize
    )
    checkpoint = find_checkpoint(options)
    assert checkpoint is not None  # it is a positional argument
    with Progress("export", quiet=options.json) as progress:
        written = export_checkpoint(checkpoint, options.output, settings, progress)
    _say_of_text(checkpoint)
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
