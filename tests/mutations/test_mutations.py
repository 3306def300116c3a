"""The list of mutations: each edit applies, `make test` has each test, each fault is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from all_faults import FAULTS
from fork_server import ForkServer
from mutations import ROOT, Mutation, MutationError, read_mutations, reason_not_run
from run import CAUGHT, ERROR, SURVIVED, run_in

MUTATIONS = read_mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda x: x.name)
def test_an_entry_can_be_run(mutation: Mutation) -> None:
    assert reason_not_run(mutation.test) is None
    if not mutation.fault:
        text = (ROOT / mutation.file).read_text(encoding="utf-8")
        assert mutation.edited(text) != text


def test_every_fault_is_listed() -> None:
    listed = [x for x in MUTATIONS if x.fault]
    put = [fault.name for fault in FAULTS if not fault.slow]
    assert sorted(x.fault for x in listed) == sorted(put)
    assert all(x.test.endswith(f"[{x.fault}]") for x in listed)


def test_what_is_not_an_entry_is_refused(tmp_path: Path) -> None:
    good = '[[mutation]]\nname = "a"\nfile = "f"\nfind = "x"\nreplace = "y"\ntest = "t"\n'
    (tmp_path / "one.toml").write_text(good)
    (entry,) = read_mutations(tmp_path)
    assert (entry.area, entry.edited("axb")) == ("one", "ayb")
    for text in ("ab", "axbx"):
        with pytest.raises(MutationError, match="a: f has"):
            entry.edited(text)
    for other in (good, good.replace('"a"', '"b"') + "more = 1\n", good.replace("find", "fault")):
        (tmp_path / "two.toml").write_text(other)
        with pytest.raises(MutationError, match="twice, or other fields"):
            read_mutations(tmp_path)


def test_what_make_test_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "@pytest.mark.slow\ndef test_slow(): ...\n\n"
        "@pytest.mark.parametrize('i', [0, pytest.param(1, marks=pytest.mark.slow)])\n"
        "def test_some(i): ...\n"
    )
    reasons = [reason_not_run(f"{node}", tmp_path) for node in (
        "test_x.py::test_some[0]", "test_x.py::test_slow", "test_x.py::test_none", "test_y.py::t",
        "test_x.py")]  # fmt: skip
    assert reasons == [
        None, "test_slow is slow", "test_x.py has no test test_none", "there is no file test_y.py",
        "test_x.py has no test ",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [("1 + 2", CAUGHT), ("2 * 1", SURVIVED), ("1 +", ERROR)],
)  # fmt: skip
def test_the_runner_tells_caught_from_missed(tmp_path: Path, wrong: str, verdict: str) -> None:
    """What cannot be collected proves nothing; the copy is left as it was."""
    (tmp_path / "code_.py").write_text("two = 1 + 1\n")
    (tmp_path / "test_code.py").write_text("from code_ import two\ndef test(): assert two == 2\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    mutation = Mutation("x", "area", "test_code.py::test", "code_.py", "1 + 1", wrong)
    with ForkServer(()) as server:
        assert run_in(server, tmp_path, mutation)[0] == verdict
    assert (tmp_path / "code_.py").read_text() == "two = 1 + 1\n"
