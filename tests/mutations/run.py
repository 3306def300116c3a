"""Put each known bug into a copy of the tree and see its test fail: `make mutations`.

    python tests/mutations/run.py [--only NAME ...] [--area AREA ...] [--jobs N] [--list]

The working tree is never edited: each job has a copy of it in a temporary directory, with the
caches under `build` copied along, so that a bug in C++ or in a kernel costs what it touches. A bug
is caught if its test fails; a test that cannot be collected or set up catches nothing. Exit code 1
if one is not caught, 2 if an entry is wrong.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parent))

from mutations import ROOT, Mutation, MutationError, read_mutations

CACHES = ("plugins", "test-traces")
CAUGHT, SURVIVED, ERROR = "caught", "SURVIVED", "ERROR"


def copy_tree(place: Path) -> None:
    """What git knows of and does not ignore, links as links, and the caches."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, place / name
        if not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    for name in CACHES:
        if (ROOT / "build" / name).is_dir():
            shutil.copytree(ROOT / "build" / name, place / "build" / name)


def run_in(place: Path, mutation: Mutation) -> tuple[str, str]:
    """Whether the bug is caught in this copy, and what was seen; the copy is as it was then."""
    if mutation.fault:
        passed, seen = run_test(place, mutation.test)
        return {1: CAUGHT, 0: SURVIVED}.get(passed, ERROR), seen
    path = place / mutation.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutation.edited(whole), encoding="utf-8")
    try:
        passed, seen = run_test(place, mutation.test)
    finally:
        path.write_text(whole, encoding="utf-8")
    return {0: CAUGHT, 1: SURVIVED}.get(passed, ERROR), seen


def run_test(place: Path, test: str) -> tuple[int, str]:
    """1 if the test passed, 0 if it failed, 2 if it did not run; and the last lines of output."""
    results = place / "results.xml"
    results.unlink(missing_ok=True)
    # Bytecode is kept by second and size: an edit may change neither.
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-n0", "-q", "-x", "-m", "not slow",
         "-p", "no:cacheprovider", f"--junitxml={results}", test],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
    if done.returncode < 0:  # a signal: how a wrong address in C++ is seen
        return 0, said
    if done.returncode not in (0, 1) or not results.is_file():
        return 2, said
    suite = ElementTree.parse(results).getroot().find("testsuite")
    assert suite is not None
    ran = int(suite.get("tests", 0)) - int(suite.get("skipped", 0))
    if int(suite.get("failures", 0)):
        return 0, said
    return (1 if ran and not int(suite.get("errors", 0)) else 2), said


def run_all(chosen: list[Mutation], jobs: int) -> list[tuple[Mutation, str]]:
    """Each with its verdict, told as they come."""
    copies: queue.Queue[Path] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="glm-trt-mutations-") as place:
        for i in range(jobs):
            copies.put(Path(place) / str(i))
            copy_tree(Path(place) / str(i))

        def judged(mutation: Mutation) -> tuple[Mutation, str]:
            copy, began = copies.get(), time.monotonic()
            try:
                verdict, seen = run_in(copy, mutation)
            finally:
                copies.put(copy)
            seconds = time.monotonic() - began
            print(f"{verdict:8} {mutation.area}: {mutation.name} ({seconds:.0f} s)", flush=True)
            if verdict != CAUGHT:
                print(f"         {mutation.test}\n{seen}", flush=True)
            return mutation, verdict

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(judged, chosen))


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--area", nargs="+", metavar="AREA", help="those of these files alone")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--list", action="store_true", help="print them, and run nothing")
    options = parser.parse_args(arguments)
    try:
        known = read_mutations()
        for name in options.only or []:
            if name not in {x.name for x in known}:
                raise MutationError(f"there is no mutation {name}")
        for name in options.area or []:
            if name not in {x.area for x in known}:
                raise MutationError(f"there is no area {name}")
        chosen = [x for x in known if (not options.only or x.name in options.only)
                  and (not options.area or x.area in options.area)]  # fmt: skip
        if options.list:
            for x in chosen:
                print(f"{x.area}: {x.name}: {x.file or 'tests/validate/faults.py'} → {x.test}")
            return 0
        results = run_all(chosen, max(1, min(options.jobs, len(chosen))))
    except MutationError as error:
        print(f"mutations: error: {error}", file=sys.stderr)
        return 2
    missed = [x.name for x, verdict in results if verdict != CAUGHT]
    print(f"{len(results) - len(missed)} of {len(results)} caught" + "".join(
        f"\n  not: {name}" for name in missed))  # fmt: skip
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
