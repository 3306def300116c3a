"""The smallest gain or bias that validation would have noticed, from reports of faultless bundles.

A report says of each layer between which bounds the slope of a backend's errors may be, and what it
was. The distance to the farther bound is the gain (or bias) that would have been noticed whatever
its sign; of the two phases, prefill and decode, the one that notices more decides. The table has
the median of all layers of all reports of a dtype, and the worst layer.

Exit codes: 0 reported, 1 a report is of a bundle that failed: what is noticed there says nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from glm_trt.validate.report_files import read_report
from glm_trt.validate.systematic import CHANNEL

OUTPUT = "hidden_out"


def smallest(report: dict[str, Any]) -> dict[str, list[float]]:
    """By what errors were held against, what each layer would have noticed."""
    found: dict[str, list[float]] = {}
    for block in report["blocks"]:
        if block["layer"] is None:
            continue
        of_block: dict[str, list[float]] = {}
        for slopes in block["systematic"].get(OUTPUT, {}).values():
            for name, slope in slopes.items():
                distance = max(slope["highest"] - slope["found"], slope["found"] - slope["lowest"])
                of_block.setdefault(CHANNEL if name.startswith(CHANNEL) else name, []).append(
                    distance
                )
        for name, of_phases in of_block.items():
            found.setdefault(name, []).append(min(of_phases))
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", help="report.json, or its directory")
    tables: dict[str, dict[str, list[float]]] = {}
    for path in parser.parse_args().reports:
        report = read_report(path)
        if not report["ok"]:
            print(f"{path}: the validation failed", file=sys.stderr)
            return 1
        table = tables.setdefault(report["backend"]["dtype"], {})
        for name, sizes in smallest(report).items():
            table.setdefault(name, []).extend(sizes)
    print("| dtype | of | layers | median | worst |")
    print("|---|---|---|---|---|")
    for dtype, table in tables.items():
        for name, sizes in table.items():
            print(f"| {dtype} | {name} | {len(sizes)} | {statistics.median(sizes):.1e} "
                  f"| {max(sizes):.1e} |")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
