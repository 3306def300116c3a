"""The plugin library for a bundle: `python -m glm_trt.engines.build.plugins BUNDLE`.

Compiles the kernels that the bundle's engines need, and prints where the library is. A whole
library that is up to date is taken as it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from glm_trt.engines.build.engines import BuildOptions, needed_by
from glm_trt.engines.build.flavours import BACKENDS
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.requirements import require_installed
from glm_trt.plugins.library import current_library


def build_plugins(bundle: Path, options: BuildOptions, output: Path) -> Path:
    """The library for the engines that `options` would build, in `output`; built if need be.

    Raises
    ------
    BundleError
        If the bundle is not whole, or lacks the dtype.
    BuildError
        If a kernel or the C++ does not compile.
    MissingCapabilityError
        If the backend, Triton, a compiler or a header is absent.
    """
    needed = needed_by(bundle, options)
    require_installed("the plugin library", "plugins", "triton", "torch")
    if (library := current_library(output, needed)) is not None:
        return library
    from glm_trt.plugins.build import build_library  # loads torch and Triton

    return build_library(output, needed)


def main() -> int:
    """The command of this module; its exit codes are those of `glm-trt`."""
    parser = argparse.ArgumentParser(description="Build the plugin library that a bundle needs.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--backend", choices=BACKENDS, default="tensorrt-rtx")
    parser.add_argument("--target", nargs="+", metavar="sm89", help="as for glm-trt build")
    parser.add_argument("--dtype", metavar="DTYPE", help="of the graphs, as for glm-trt build")
    parser.add_argument("--output", type=Path, default=Path("build/plugins"), metavar="DIR")
    options = parser.parse_args()
    targets = tuple(options.target) if options.target else None
    settings = BuildOptions(options.backend, targets, options.dtype)
    try:
        print(build_plugins(options.bundle, settings, options.output))
    except GlmTrtError as error:
        print(f"plugins: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
