"""`glm-trt inspect`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from glm_trt.commands.command import DTYPES, Command, add_paths
from glm_trt.model.errors import GlmTrtError

if TYPE_CHECKING:
    from glm_trt.export.bundle.casts import Cast
    from glm_trt.export.bundle.format import Manifest


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, "BUNDLE")
    parser.add_argument(
        "--polygraphy", metavar="BLOCK",
        help="print the line that runs this block (or the first of this kind) in Polygraphy",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=DTYPES, metavar="DTYPE", help="of --polygraphy (default: float32)"
    )
    parser.add_argument(
        "--inputs", type=Path, metavar="RUN",
        help="of --polygraphy: those of a run saved by validate --save (default: random)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR",
        help="of --polygraphy: where what loads the inputs goes (default: BUNDLE-polygraphy)",
    )  # fmt: skip


def _run(options: argparse.Namespace) -> int:
    from glm_trt.export.bundle.read import read_manifest, verify_files
    from glm_trt.export.bundle.records import to_json
    from glm_trt.progress import print_table

    if options.polygraphy is not None:
        return _print_polygraphy_line(options)
    for name in ("dtype", "inputs", "output"):
        if getattr(options, name) is not None:
            raise GlmTrtError(f"--{name}: goes with --polygraphy BLOCK")
    manifest = read_manifest(options.bundle)
    verify_files(options.bundle, manifest.files)
    dtype, casts = manifest.checkpoint.dtype, _casts(options.bundle, manifest)
    if options.json:
        listed = casts if isinstance(casts, str) else [cast._asdict() for cast in casts]
        print(json.dumps(to_json(manifest) | {"casts": listed}))
        return 0
    layers: dict[str, int] = {}
    for block in manifest.blocks:
        layers[block.kind] = layers.get(block.kind, 0) + 1
    source = manifest.checkpoint
    files = len(source.files)
    print(f"{options.bundle}: {manifest.config['model_type']}, every hash verified")
    print_table(
        [("checkpoint", f"{source.directory} ({source.dtype}, {files} file(s))"),
         ("graphs", f"{', '.join(manifest.dtypes)}; up to {manifest.max_seq_len} tokens"),
         *((kind, f"{count} block(s)") for kind, count in layers.items()),
         *((f"cast in {dtype}", of) for of in _cast_lines(casts)),
         *((f"{e.backend} {e.target}", f"{e.kind} in {e.dtype}: "
            f"{e.bytes / 1e6:.1f} MB, {e.layers} layers") for e in manifest.engines)]
    )  # fmt: skip
    return 0


def _casts(path: Path, manifest: Manifest) -> list[Cast] | str:
    """What is cast in the checkpoint's dtype; a sentence where its weights are not there."""
    from glm_trt.export.bundle.casts import find_casts
    from glm_trt.export.bundle.read import Bundle

    try:
        bundle = Bundle.open(path)
    except GlmTrtError as error:
        return f"not known: {error}"
    return find_casts(bundle, manifest.checkpoint.dtype)


def _cast_lines(casts: list[Cast] | str) -> list[str]:
    if isinstance(casts, str):
        return [casts]
    return [f"{x.pattern} ({x.tensors}): {x.stored} to {x.bound}" for x in casts] or ["nothing"]


def _print_polygraphy_line(options: argparse.Namespace) -> int:
    from glm_trt.export.bundle.read import Bundle
    from glm_trt.validate.saving.polygraphy_run import polygraphy_line

    bundle = options.bundle
    line = polygraphy_line(
        Bundle.open(bundle), options.polygraphy, options.dtype or "float32", options.inputs,
        options.output or bundle.resolve().parent / f"{bundle.resolve().name}-polygraphy",
    )  # fmt: skip
    print(json.dumps({"command": line}) if options.json else line)
    return 0


COMMAND = Command(
    "inspect",
    "show what a bundle holds",
    "glm-trt inspect bundle\nglm-trt inspect bundle --polygraphy layer.0",
    _add_arguments,
    _run,
)
