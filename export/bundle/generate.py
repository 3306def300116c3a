"""What is made of the bundle's format: `python -P -m glm_trt.export.bundle.generate`.

The JSON Schemas of the manifest and the bindings lie beside this module, and the C++ runtime has
a header of structs and their fields. With `--check` nothing is
written, and a file that is not what it should be is named.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from glm_trt.export.bundle.cpp_header import header_of
from glm_trt.export.bundle.format import (
    FILE_NAME,
    FORMAT,
    FORMAT_VERSION,
    Bindings,
    Manifest,
)
from glm_trt.export.bundle.records import schema_of
from glm_trt.model.files import write_atomically

HERE = Path(__file__).resolve().parent
HEADER = HERE.parents[1] / "engines" / "cpp" / "src" / "bundle_format.h"
COMMAND = "python -P -m glm_trt.export.bundle.generate"


def generated() -> dict[Path, str]:
    """The files that are made of the format, and their texts."""
    schemas = {
        "manifest": schema_of(Manifest, "Manifest of a glm-trt bundle"),
        "bindings": schema_of(Bindings, "Bindings of a glm-trt bundle, by block"),
    }
    constants: dict[str, str | int] = {
        "kFileName": FILE_NAME,
        "kFormat": FORMAT,
        "kFormatVersion": FORMAT_VERSION,
    }
    return {
        **{
            HERE / f"{name}.schema.json": json.dumps(schema, indent=2) + "\n"
            for name, schema in schemas.items()
        },
        HEADER: header_of([Manifest], {"Bindings": Bindings}, constants),
    }


def stale_files() -> list[Path]:
    """Those that are not what the format makes of them."""
    return [
        path
        for path, text in generated().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def main() -> int:
    """The command of this module: 1 where `--check` finds a stale file."""
    parser = argparse.ArgumentParser(description="Make schemas and header of the bundle's format.")
    parser.add_argument("--check", action="store_true", help="write nothing; say what is stale")
    check = parser.parse_args().check
    for path in (stale := stale_files()):
        if check:
            print(f"{path}: stale; run {COMMAND}", file=sys.stderr)
        else:
            write_atomically(path, generated()[path].encode())
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
