"""Put each known bug into a copy of the tree and see its test fail: `make mutations`.

    python tests/mutations/run.py [--only NAME_OR_AREA ...] [--jobs N] [--list]

The working tree is never edited: each job has a copy of it in a temporary directory, with the
caches under `build` copied along, so that a bug in a kernel costs what it touches. A bug is caught
if its test, run alone in one process, fails; a test that cannot be collected or set up, or that
never ends, catches nothing. Exit code 1 if one is not caught, 2 if an entry is wrong.
"""

from __future__ import annotations

import argparse
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parent))

from fork_server import ForkServer
from mutations import ROOT, Mutation, MutationError, read_mutations

CACHES = ("plugins", "test-traces")
CAUGHT, SURVIVED, ERROR = "caught", "SURVIVED", "ERROR"
Verdicts = list[tuple[Mutation, str, str]]  # each with what was seen


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


def run_in(server: ForkServer, place: Path, mutation: Mutation) -> tuple[str, str]:
    """Whether the bug is caught in this copy, and what was seen; the copy is as it was then."""
    path = place / mutation.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutation.edited(whole), encoding="utf-8")
    try:
        outcomes, seen = run_tests(server, place, [mutation.test])
    finally:
        path.write_text(whole, encoding="utf-8")
    return {True: SURVIVED, False: CAUGHT, None: ERROR}[outcomes[mutation.test]], seen


def run_faults(server: ForkServer, place: Path, faults: list[Mutation]) -> Verdicts:
    """Those whose test puts them into a bundle by itself: of one file, so in one process."""
    outcomes, seen = run_tests(server, place, [x.test for x in faults])
    verdict = {True: CAUGHT, False: SURVIVED, None: ERROR}
    return [(x, verdict[outcomes[x.test]], seen) for x in faults]


def run_tests(
    server: ForkServer, place: Path, tests: list[str]
) -> tuple[dict[str, bool | None], str]:
    """Of each test whether it passed, None if it did not run; and the last lines of output.

    A test without its parameter's name stands for all of them, and passes if they do.
    """
    results = place / "results.xml"
    results.unlink(missing_ok=True)
    first = ["-x"] if len(tests) == 1 else []
    code, said = server.pytest(place, [
        "-n0", "-q", *first, "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={results}",
        *tests,
    ])  # fmt: skip
    if code is not None and code < 0:  # a signal: how a wrong address in C++ is seen
        return dict.fromkeys(tests, False), said
    if code not in (0, 1) or not results.is_file():
        return dict.fromkeys(tests), said
    cases = ElementTree.parse(results).getroot().findall(".//testcase")
    return {test: _outcome(test, cases) for test in tests}, said


def _outcome(test: str, cases: list[ElementTree.Element]) -> bool | None:
    wanted = test.partition("::")[2]
    found = [
        {x.tag for x in case}
        for case in cases
        if wanted in (name := case.get("name", ""), name.partition("[")[0])
    ]
    if any("failure" in tags for tags in found):
        return False
    if any("error" in tags for tags in found):
        return None
    return True if any("skipped" not in tags for tags in found) else None


def batches(chosen: list[Mutation]) -> list[list[Mutation]]:
    """What runs in one copy, one after the other: faults by the file of their tests, which share
    walks, and edits of the C++ runtime, which share a build. The longest first.
    """

    def together(x: Mutation) -> str:
        if x.fault:
            return x.test.partition("::")[0]
        return "C++" if x.file.startswith("engines/cpp") else x.name

    made = [list(of) for _, of in groupby(sorted(chosen, key=together), together)]
    return sorted(made, key=len, reverse=True)


def run_all(chosen: list[Mutation], jobs: int) -> list[tuple[Mutation, str]]:
    """Each with its verdict, told as they come."""
    copies: queue.Queue[tuple[ForkServer, Path]] = queue.Queue()
    work = batches(chosen)
    jobs = max(1, min(jobs, len(work)))
    with ExitStack() as stack:
        whole = stack.enter_context(tempfile.TemporaryDirectory(prefix="glm-trt-mutations-"))
        for i in range(jobs):
            copy_tree(Path(whole) / str(i))
            copies.put((stack.enter_context(ForkServer()), Path(whole) / str(i)))

        def told(verdicts: Verdicts, began: float) -> list[tuple[Mutation, str]]:
            took = f"{time.monotonic() - began:.0f} s"
            took += f" for {len(verdicts)}" if len(verdicts) > 1 else ""
            for mutation, verdict, seen in verdicts:
                print(f"{verdict:8} {mutation.area}: {mutation.name} ({took})", flush=True)
                if verdict != CAUGHT:
                    print(f"         {mutation.test}\n{seen}", flush=True)
            return [(mutation, verdict) for mutation, verdict, _ in verdicts]

        def judged(batch: list[Mutation]) -> list[tuple[Mutation, str]]:
            copy = copies.get()
            try:
                if batch[0].fault:
                    began = time.monotonic()
                    return told(run_faults(*copy, batch), began)
                found = []
                for mutation in batch:
                    began = time.monotonic()
                    found += told([(mutation, *run_in(*copy, mutation))], began)
                return found
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            return [x for batch in pool.map(judged, work) for x in batch]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[], help="these, or those of these areas"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--list", action="store_true", help="print them, and run nothing")
    options = parser.parse_args(arguments)
    try:
        known = read_mutations()
        for name in options.only:
            if not any(name in (x.name, x.area) for x in known):
                raise MutationError(f"there is no mutation and no area {name}")
        chosen = [
            x for x in known if not options.only or {x.name, x.area} & set(options.only)
        ]  # fmt: skip
        if options.list:
            for x in chosen:
                print(f"{x.area}: {x.name}: {x.file or 'tests/validate/faults.py'} → {x.test}")
            return 0
        results = run_all(chosen, options.jobs)
    except MutationError as error:
        print(f"mutations: error: {error}", file=sys.stderr)
        return 2
    missed = [x.name for x, verdict in results if verdict != CAUGHT]
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{len(results) - len(missed)} of {len(results)} caught, "
          f"{spent.ru_utime + spent.ru_stime:.0f} s of CPU time" + "".join(
        f"\n  not: {name}" for name in missed))  # fmt: skip
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
