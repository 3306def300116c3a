"""README's commands: every one is a target of make, or parses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from glm_trt.cli import COMMANDS, make_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
SYNOPSIS = next(block for block in BLOCKS if block.startswith("glm-trt export CHECKPOINT"))
LINES = [line.split("  #")[0].strip() for block in BLOCKS if block != SYNOPSIS
         for line in block.splitlines()]  # fmt: skip

# Lines for a shell, which name nothing of ours but a command that has a test of its own.
KNOWN = (". .venv/bin/activate", "source <(glm-trt --print-completion bash)")


def test_every_line_of_a_block_is_known() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    checked = 0
    for line in LINES:
        program, *arguments = shlex.split(line)
        if program == "make":
            assert {word for word in arguments if "=" not in word} <= targets, line
        elif program == "glm-trt":
            make_parser().parse_args(arguments)
        elif program == "pip":
            extras = re.findall(r"\[(.*)\]", line)[0].split(",")
            project = (ROOT / "pyproject.toml").read_text()
            assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
        else:
            assert line in KNOWN, line
        checked += 1
    assert checked >= 5


def test_synopsis() -> None:
    """Its commands are those of the parser, and each option is one of its command."""
    described = re.split(r"^glm-trt ", SYNOPSIS, flags=re.MULTILINE)[1:]
    assert {text.split()[0] for text in described} == {command.name for command in COMMANDS}
    commands = next(action for action in make_parser()._actions if action.dest == "command").choices
    assert commands is not None
    for text in described:
        parser = commands[text.split()[0]]  # type: ignore[call-overload]
        options = {option for action in parser._actions for option in action.option_strings}
        assert set(re.findall(r"--[a-z-]+", text)) <= options
