"""The examples in the help texts are command lines that the parser takes."""

from __future__ import annotations

import shlex

import pytest

from glm_trt.cli import COMMANDS, main, make_parser
from glm_trt.commands.command import Command

EXAMPLES = [(command, line) for command in COMMANDS for line in command.example.splitlines()]


@pytest.mark.parametrize(("command", "line"), EXAMPLES, ids=lambda part: getattr(part, "name", ""))
def test_examples_parse(command: Command, line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "glm-trt"
    options = make_parser().parse_args(arguments)
    assert options.command == arguments[0] == command.name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_help_has_an_example(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command.name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "for example:\n  glm-trt " in shown
    assert command.example.splitlines()[0] in shown
