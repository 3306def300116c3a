"""`glm-trt build`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from glm_trt.commands.command import BACKENDS, DTYPES, Command, add_paths
from glm_trt.model.errors import GlmTrtError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, "BUNDLE")
    parser.add_argument("--backend", choices=BACKENDS[1:], default="tensorrt-rtx")
    parser.add_argument(
        "--target", nargs="+", metavar="sm89",
        help="GPU architectures (default: sm80, sm86, sm89 and sm120; the present GPU's with "
        "tensorrt)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="of the graphs (default: the checkpoint's)")
    plugins = parser.add_mutually_exclusive_group()
    plugins.add_argument(
        "--no-plugins",
        action="store_true",
        help="expand our operators into standard ones, to compare or to do without the library",
    )
    plugins.add_argument("--plugins", type=Path, metavar="LIBRARY", help="the plugin library")
    parser.add_argument(
        "--embed-plugins", action="store_true", help="carry the library inside each plan"
    )


def _run(options: argparse.Namespace) -> int:
    from glm_trt.engines.build.engines import BuildOptions, build_engines
    from glm_trt.engines.build.flavours import load_flavour
    from glm_trt.export.bundle.records import to_json
    from glm_trt.plugins.library import find_library
    from glm_trt.progress import Progress, print_table

    if options.no_plugins and options.embed_plugins:
        raise GlmTrtError("--embed-plugins: there is nothing to embed with --no-plugins")
    load_flavour(options.backend)  # without it, a plugin library would not help
    settings = BuildOptions(
        options.backend,
        tuple(options.target) if options.target else None,
        options.dtype,
        plugins=None if options.no_plugins else find_library(options.plugins),
        embed_plugins=options.embed_plugins,
    )
    with Progress("build", quiet=options.json) as progress:
        engines = build_engines(options.bundle, settings, progress)
    if options.json:
        print(json.dumps([to_json(e.entry) | {"cached": e.cached} for e in engines]))
        return 0
    rows = [
        (e.entry.target, e.entry.kind, e.entry.dtype, f"{e.entry.bytes / 1e6:.1f} MB",
         "cached" if e.cached else f"{e.entry.seconds:.1f} s", f"{e.entry.layers} layers",
         f"{len(e.entry.plugins)} plugins",
         f"{e.entry.peak_memory_bytes / 1e6:.0f} MB peak")
        for e in engines
    ]  # fmt: skip
    print_table(rows)
    built = sum(not engine.cached for engine in engines)
    print(f"{options.bundle}: {len(engines)} engines, {built} built, {len(engines) - built} cached")
    return 0


COMMAND = Command(
    "build",
    "build TensorRT engines, with no GPU where tensorrt-rtx is",
    "glm-trt build bundle --backend tensorrt-rtx --target sm89 sm120",
    _add_arguments,
    _run,
)
