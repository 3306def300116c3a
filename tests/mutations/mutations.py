"""The list of known bugs: edits of a file with the test that fails under each, and faults of
bundles (`tests/validate/faults.py`) with the test that puts them there and sees them found.
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = Path(__file__).parent


class MutationError(Exception):
    """An entry that says nothing sensible: which, and why."""


@dataclass(frozen=True)
class Mutation:
    """An entry; `fault` names one of `tests/validate/faults.py`, else the edit is given."""

    name: str
    area: str
    test: str
    file: str = ""
    find: str = ""
    replace: str = ""
    fault: str = ""

    def edited(self, text: str) -> str:
        """`text` of the file with the edit."""
        count = text.count(self.find) if self.find else 0
        if count != 1 or self.find == self.replace:
            raise MutationError(f"{self.name}: {self.file} has what it replaces {count} times")
        return text.replace(self.find, self.replace)


def read_mutations(place: Path = PLACE) -> list[Mutation]:
    """Every entry of every file, by area.

    Raises
    ------
    MutationError
        If two have one name, or an entry has other fields than it should.
    """
    found: dict[str, Mutation] = {}
    for path in sorted(place.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]:
            wanted = {"name", "test"} | ({"fault"} if "fault" in entry else
                                         {"file", "find", "replace"})  # fmt: skip
            if set(entry) != wanted or entry["name"] in found:
                raise MutationError(f"{path.name}: {entry.get('name')}: twice, or other fields")
            found[entry["name"]] = Mutation(area=path.stem, **entry)
    return list(found.values())


def reason_not_run(node: str, root: Path = ROOT) -> str | None:
    """Why `make test` does not run the test `node`; None if it does."""
    path, _, name = node.partition("::")
    if not (root / path).is_file():
        return f"there is no file {path}"
    name = name.partition("[")[0]
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    functions = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == name]
    if not name.startswith("test_") or not functions:
        return f"{path} has no test {name}"
    if any("mark.slow" in ast.unparse(x) for x in functions[0].decorator_list if "parametrize"
           not in ast.unparse(x)):  # fmt: skip
        return f"{name} is slow"
    return None
