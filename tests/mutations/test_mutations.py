"""The lists of mutations can be carried out, and the runner tells caught from missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run import ROOT, EntryError, Mutation, caught, read_mutations

LISTED = read_mutations()


@pytest.mark.parametrize("mutation", LISTED, ids=lambda mutation: mutation.name)
def test_every_entry_can_be_carried_out(mutation: Mutation) -> None:
    mutation.check()


def test_the_tests_named_are_in_the_default_run() -> None:
    nodes = sorted({mutation.test for mutation in LISTED})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-n0", "-m", "not slow"]
    done = subprocess.run([*command, *nodes], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    collected = done.stdout.splitlines()
    missing = [n for n in nodes if not any(line.startswith(n) for line in collected)]
    assert not missing


@pytest.mark.parametrize("wrong, seen", [("1 + 2", True), ("1 * 1 + 1", False)])
def test_the_runner_tells_caught_from_missed(tmp_path: Path, wrong: str, seen: bool) -> None:
    (tmp_path / "code.py").write_text("two = 1 + 1\n")
    (tmp_path / "test_code.py").write_text("from code_ import two\ndef test(): assert two == 2\n")
    (tmp_path / "code.py").rename(tmp_path / "code_.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    mutation = Mutation("x", "code_.py", "1 + 1", wrong, "test_code.py", "x.toml")
    assert caught(mutation, tmp_path)[0] is seen
    assert (tmp_path / "code_.py").read_text() == "two = 1 + 1\n"


def test_a_test_that_cannot_be_collected_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "code_.py").write_text("two = 1 + 1\n")
    (tmp_path / "test_code.py").write_text("import nothing_of_this_name\n")
    mutation = Mutation("x", "code_.py", "1 + 1", "2", "test_code.py", "x.toml")
    with pytest.raises(EntryError, match="exit code 2"):
        caught(mutation, tmp_path)


@pytest.mark.parametrize("text, message", [("x", "found it 0 times"), ("a", "found it 2 times")])
def test_an_edit_must_be_the_only_one_possible(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "code.py").write_text("a = a\n")
    with pytest.raises(EntryError, match=message):
        Mutation("n", "code.py", text, "b", "code.py", "x.toml").check(tmp_path)
