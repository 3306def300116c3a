"""Runs the mutations: each wrong edit is made in a copy of the tree, where its test must fail.

    python tests/mutations/run.py [--only NAME ...] [--list]

The lists are the TOML files beside this one. The working tree is only read; kernels and bundles
that were built before are taken over, so that a copy compiles what its edit changes and no more.
Exit codes: 0 every mutation was caught, 1 some were not, 2 an entry is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Built before, and keyed by content: what an edit makes stale is built anew in the copy.
BUILT = ("build/plugins", "build/test-bundles")
# pytest's exit code where tests ran and some failed; 2 to 5 are other ends, which prove nothing.
TESTS_FAILED = 1


class EntryError(Exception):
    """An entry that cannot be carried out."""


@dataclass(frozen=True)
class Mutation:
    """One wrong edit: `find`, which occurs once in `file`, becomes `replace`; `test` sees it."""

    name: str
    file: str
    find: str
    replace: str
    test: str
    listed_in: str

    def check(self, root: Path = ROOT) -> None:
        """Raise EntryError unless the edit can be made in the tree at `root`."""
        path = root / self.file
        if not path.is_file():
            raise EntryError(f"{self.listed_in}: {self.name}: there is no {self.file}")
        if self.find == self.replace:
            raise EntryError(f"{self.listed_in}: {self.name}: replaces the text by itself")
        if (found := path.read_text().count(self.find)) != 1:
            raise EntryError(
                f"{self.listed_in}: {self.name}: {self.file}: expected the text to find once, "
                f"found it {found} times"
            )
        if not (root / self.test.partition("::")[0]).is_file():
            raise EntryError(f"{self.listed_in}: {self.name}: there is no {self.test}")

    def apply(self, root: Path) -> None:
        """Make the edit in the tree at `root`."""
        self.check(root)
        path = root / self.file
        path.write_text(path.read_text().replace(self.find, self.replace))


def read_mutations(directory: Path = HERE) -> list[Mutation]:
    """Every entry of the lists in `directory`. Raises EntryError where one is not whole."""
    found: dict[str, Mutation] = {}
    for path in sorted(directory.glob("*.toml")):
        for entry in tomllib.loads(path.read_text()).get("mutation", []):
            try:
                mutation = Mutation(**entry, listed_in=path.name)
            except TypeError as error:
                raise EntryError(f"{path.name}: {entry.get('name', entry)}: {error}") from None
            if mutation.name in found:
                raise EntryError(f"{path.name}: {mutation.name}: there is another of this name")
            found[mutation.name] = mutation
    return list(found.values())


def copy_tree(to: Path) -> None:
    """The files of the working tree that git knows or would add, and what was built before."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        source, place = ROOT / name, to / name
        if source.is_symlink() or source.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place, follow_symlinks=False)
    for name in BUILT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, symlinks=True)


def caught(mutation: Mutation, tree: Path) -> tuple[bool, str]:
    """Whether the mutation's test fails in `tree`, which is left as it was; the test's output.

    Raises EntryError where the test cannot be run.
    """
    path = tree / mutation.file
    before = path.read_bytes()
    mutation.apply(tree)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider",
             mutation.test],
            cwd=tree, env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
    finally:
        path.write_bytes(before)
    output = done.stdout + done.stderr
    if done.returncode not in (0, TESTS_FAILED):
        raise EntryError(
            f"{mutation.listed_in}: {mutation.name}: {mutation.test} ended with pytest's exit code "
            f"{done.returncode}:\n{output[-2000:]}"
        )
    return done.returncode == TESTS_FAILED, output


def run(mutations: Iterable[Mutation]) -> int:
    """Run mutations one after the other and print a line for each; the exit code."""
    missed, wrong = [], []
    with tempfile.TemporaryDirectory(prefix="mutations-") as directory:
        tree = Path(directory) / "tree"
        copy_tree(tree)
        for mutation in mutations:
            began = time.monotonic()
            try:
                seen, output = caught(mutation, tree)
            except EntryError as error:
                wrong.append(mutation.name)
                print(error, file=sys.stderr)
                continue
            if not seen:
                missed.append(mutation.name)
                print(output[-2000:], file=sys.stderr)
            word = "caught" if seen else "MISSED"
            print(f"{word}  {mutation.name}  {mutation.test}  {time.monotonic() - began:.1f} s",
                  flush=True)  # fmt: skip
    print(f"{len(missed)} missed" + (f": {', '.join(missed)}" if missed else ""))
    return 2 if wrong else int(bool(missed))


def main() -> int:
    """The command of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these, instead of all")
    parser.add_argument("--list", action="store_true", help="print the names, run nothing")
    options = parser.parse_args()
    try:
        mutations = read_mutations()
        known = {mutation.name for mutation in mutations}
        if unknown := sorted(set(options.only or ()) - known):
            raise EntryError(f"--only: no mutation is called {', '.join(unknown)}")
        chosen = [x for x in mutations if options.only is None or x.name in options.only]
        for mutation in chosen:
            mutation.check()
    except EntryError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        print(*(f"{x.name}  {x.file}  {x.test}" for x in chosen), sep="\n")
        return 0
    return run(chosen)


if __name__ == "__main__":
    sys.exit(main())
