"""Completion, as a shell does it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from glm_trt.cli import COMMANDS, main
from glm_trt.completion import SHELLS

COMPLETE = """
source "$1"; shift
function=$(complete -p glm-trt | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
"$function" glm-trt "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 0
    path = tmp_path / "completion.bash"
    path.write_text(capsys.readouterr().out)
    return path


def complete(script: Path, *words: str) -> set[str]:
    command = ["bash", "--norc", "-c", COMPLETE, "bash", str(script), "glm-trt", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=script.parent)
    return set(done.stdout.split())


def test_bash(script: Path) -> None:
    assert {command.name for command in COMMANDS} <= complete(script, "")
    assert complete(script, "ma") == {"make-checkpoint"}
    assert "--max-new-tokens" in complete(script, "run", "--max")
    assert complete(script, "run", "--backend", "tensorrt-") == {"tensorrt-rtx"}
    (script.parent / "bundle-here").mkdir()
    assert "bundle-here" in complete(script, "inspect", "bundle-h")


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_valid(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    text = capsys.readouterr().out
    assert "make-checkpoint" in text
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
