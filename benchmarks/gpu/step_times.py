"""GLM-5.1's sizes: agreement with eager PyTorch, then times."""

from __future__ import annotations

import statistics

from commands import operators
from outcome import Outcome, Settings

COMPILE_SECONDS = "240"  # then only eager PyTorch is timed


def run(settings: Settings) -> Outcome:
    """Medians of each operator, beside eager PyTorch, `torch.compile` and the roofline."""
    given = () if settings.stand_ins else ("--compile", "--compile-seconds", COMPILE_SECONDS)
    status, found = operators(settings, "--no-cases", *given)
    rows = found.get("rows", [])
    wrong = [f"{row['name']}: {row['wrong']}" for row in rows if row["wrong"]]
    if not rows or (status and not wrong):
        wrong += found["wrong"] or [f"gpu_operators.py ended with status {status}"]
    if wrong:
        return Outcome(f"{len(wrong)} of {len(rows)} are wrong; first: {wrong[0]}", {}, wrong)
    if settings.stand_ins:
        line = f"{len(rows)} quantised works agree, at small sizes; stand-ins have no times"
        return Outcome(line, {"rows": len(rows)})
    eager = statistics.median(row["eager_s"] / row["ours_s"] for row in rows)
    compiled = [row["compiled_s"] / row["ours_s"] for row in rows if row.get("compiled_s")]
    line = f"{len(rows)} agree; of eager's time a {eager:.1f}th in the median"
    if compiled:
        line += f", of torch.compile's a {statistics.median(compiled):.1f}th (of {len(compiled)})"
    keys = ("memory_bytes_per_s", "products_per_s", "versions", "rows")
    return Outcome(line, {key: found[key] for key in keys})
