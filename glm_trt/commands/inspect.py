"""`glm-trt inspect`."""

from __future__ import annotations

import argparse
import json

from glm_trt.commands.command import Command, add_paths


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, "BUNDLE")


def _run(options: argparse.Namespace) -> int:
    from glm_trt.export.manifest import read_manifest, verify_files
    from glm_trt.progress import print_table

    manifest = read_manifest(options.bundle)
    verify_files(options.bundle, manifest)
    if options.json:
        print(json.dumps(manifest))
        return 0
    layers: dict[str, int] = {}
    for block in manifest["blocks"]:
        layers[block["kind"]] = layers.get(block["kind"], 0) + 1
    source = manifest["checkpoint"]
    files = len(source["files"])
    print(f"{options.bundle}: {manifest['config']['model_type']}, every hash verified")
    print_table(
        [("checkpoint", f"{source['directory']} ({source['dtype']}, {files} file(s))"),
         ("graphs", f"{', '.join(manifest['dtypes'])}; up to {manifest['max_seq_len']} tokens"),
         *((kind, f"{count} block(s)") for kind, count in layers.items()),
         *((f"{e['backend']} {e['target']}", f"{e['kind']} in {e['dtype']}: "
            f"{e['bytes'] / 1e6:.1f} MB, {e['layers']} layers") for e in manifest["engines"])]
    )  # fmt: skip
    return 0


COMMAND = Command(
    "inspect", "show what a bundle holds", "glm-trt inspect bundle", _add_arguments, _run
)
