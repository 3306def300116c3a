"""The command `glm-trt`: parse, call the library, print. Exit codes 0, 1, 2, 3 as documented."""

from __future__ import annotations

import argparse
import io
import os
import sys
import textwrap
from collections.abc import Sequence

import glm_trt
from glm_trt.commands import (
    bisect,
    build,
    diff,
    export,
    inspect,
    make_checkpoint,
    plan,
    run,
    serve,
    validate,
)
from glm_trt.completion import SHELLS, PrintCompletion
from glm_trt.model.errors import GlmTrtError

COMMANDS = tuple(
    module.COMMAND
    for module in (
        export,
        run,
        serve,
        build,
        validate,
        diff,
        bisect,
        inspect,
        make_checkpoint,
        plan,
    )
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. argparse itself ends with 2 on wrong usage."""
    _set_streams()
    options = make_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except GlmTrtError as error:
        print(f"glm-trt {options.command}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"glm-trt {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone: nothing to tell it, and what is left for it in our
        # buffer must not fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _set_streams() -> None:
    """Never fail on a character: one that the terminal lacks is printed as its number, and input
    that is no text comes through to where it is refused. A stream that is closed is empty.
    """
    sys.stdin = sys.stdin or io.StringIO()
    sys.stdout = sys.stdout or io.StringIO()
    streams = ((sys.stdout, "backslashreplace"), (sys.stdin, "surrogateescape"))
    for stream, errors in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=errors)


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything; what it gives has `run`, which does it."""
    parser = argparse.ArgumentParser(
        prog="glm-trt",
        description="Compile GLM-5.1 checkpoints to TensorRT engines.",
        epilog=_examples("glm-trt export GLM-5.1 -o bundle\nglm-trt COMMAND --help"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"glm-trt {glm_trt.__version__}")
    parser.add_argument(
        "--print-completion", choices=SHELLS, action=PrintCompletion,
        help="print the completion script of this shell, to be sourced",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name, help=command.text, description=command.text,
            epilog=_examples(command.example),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print the result as JSON only")
        sub.set_defaults(run=command.run)
    return parser


def _examples(lines: str) -> str:
    return "for example:\n" + textwrap.indent(lines, "  ")


if __name__ == "__main__":
    sys.exit(main())
