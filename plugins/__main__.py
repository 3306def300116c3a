"""The command that builds the plugin library of all bundles.

python -m glm_trt.plugins --output build/plugins [--target sm80 ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from glm_trt.model.errors import GlmTrtError
from glm_trt.model.requirements import require
from glm_trt.plugins.common.selection import TARGETS, Selection


def main() -> int:
    """The command of this package; its exit codes are those of `glm-trt`."""
    parser = argparse.ArgumentParser(
        prog="python -m glm_trt.plugins", description="Build libglm_trt_plugins.so."
    )
    parser.add_argument("--output", type=Path, default=Path("build/plugins"), metavar="DIR")
    parser.add_argument(
        "--target", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="sm80",
        help="kernels for these alone (default: all)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, help="kernels compiled at a time (default: all cores)")
    options = parser.parse_args()
    try:
        require("the plugin library", "plugins", "torch", "triton")
        from glm_trt.plugins.build import build_library

        targets = tuple(target for target in TARGETS if target in options.target)
        print(build_library(options.output, Selection(targets), options.jobs))
    except GlmTrtError as error:
        print(f"plugins: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
