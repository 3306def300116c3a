"""What is allowed of a backend, and how what was measured stands to it: entries of a report."""

from __future__ import annotations

import math

from glm_trt.validate.judging.choices import most_near_ties
from glm_trt.validate.judging.compare import ULP_EDGES, Choices
from glm_trt.validate.judging.figures import Report, e, g, number
from glm_trt.validate.judging.measure import BlockResult, Pair, Pairs
from glm_trt.validate.judging.systematic import BIAS, Judged

# The backend's error may be this much larger than what its dtype costs the eager model. In half
# precision, products are summed in float32 and the rounding of results is what costs: the same
# everywhere. In float32 the order of summation is what costs, and each library has its own:
# torch and onnxruntime, both correct, differ by factors of 0.9 to 1.4.
ALLOWED_RATIO = {"float64": 2.0, "float32": 2.0, "float16": 1.1, "bfloat16": 1.1}
# Both errors are measured on as many rows as there are, and either may be off by chance: so many
# standard errors of the yardstick are allowed on top, up to the ratio below. They vanish as rows
# get more; of the backend's own scatter nothing is allowed.
STANDARD_ERRORS = 3.0
# The same for the row that is worst in either: extremes differ more than sums do.
ALLOWED_ROW_RATIO = 4.0
# And behind several blocks: a token on which these are ill-conditioned has the largest error of all
# in each, which is there one draw of a wide distribution.
PROPAGATED_ROW_RATIO = 16.0
# One rounding (relative): less cannot be asked of an output that eager happens to give exactly.
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def tolerances(dtype: str) -> Report:
    """What is allowed of a backend in `dtype`."""
    return {
        "ratio": ALLOWED_RATIO[dtype],
        "standard_errors": STANDARD_ERRORS,
        "row_ratio": ALLOWED_ROW_RATIO,
        "propagated_row_ratio": PROPAGATED_ROW_RATIO,
        "unit_roundoff": UNIT_ROUNDOFF[dtype],
        "ulp_classes": ulp_labels(),
    }


def ulp_labels() -> list[str]:
    """Names of the classes in which differences in units in the last place are counted."""
    return [f"≤ {edge:g}" for edge in ULP_EDGES] + [f"> {ULP_EDGES[-1]:g}"]


def pair_entry(
    pair: Pair,
    dtype: str,
    tightened: float | None = None,
    tolerance: float = 0.0,
    row_ratio: float = ALLOWED_ROW_RATIO,
    standard_errors: float = STANDARD_ERRORS,
) -> Report:
    """Errors of the backend and of its dtype, their ratio, the limits and the worst element.

    `error` and `dtype_error` are relative L2 differences over all elements; the `row` ones those of
    the worst row. `tightened` replaces the allowed ratio; `tolerance` is allowed in any case, as is
    one rounding of the output's own dtype, which is wider than `dtype` where a state is.
    """
    error, dtype_error = pair.found.relative, pair.rounded.relative
    allowed = ALLOWED_RATIO[dtype] if tightened is None else tightened
    least = max(UNIT_ROUNDOFF[pair.found.dtype], tolerance)
    # Of few rows, what the dtype costs is known only roughly.
    by_chance = 1 + standard_errors * pair.rounded.uncertainty
    limit = max(min(allowed * by_chance, ALLOWED_ROW_RATIO) * dtype_error, least)
    row_limit = row_ratio * max(pair.rounded.worst_row, least)
    return {
        "error": number(error),
        "dtype_error": number(dtype_error),
        "ratio": number(error / dtype_error) if dtype_error else None,
        "limit": number(limit),
        "row_error": number(pair.found.worst_row),
        "row_limit": number(row_limit),
        "ok": error <= limit and pair.found.worst_row <= row_limit,
        "elements": pair.found.elements,
        "not_finite": pair.found.non_finite,
        "worst": {
            name: number(value) if isinstance(value, float) else value
            for name, value in pair.found.worst.items()
        },
        "ulps": {"found": pair.found.ulps.tolist(), "dtype": pair.rounded.ulps.tolist()},
    }


def propagated_entry(pair: Pair, dtype: str) -> Report:
    """A pair's entry behind several blocks."""
    return pair_entry(pair, dtype, row_ratio=PROPAGATED_ROW_RATIO)


def pairs_entry(pairs: Pairs, dtype: str) -> Report:
    """Those of all outputs behind several blocks, by output and phase."""
    entries: Report = {}
    for (name, phase), pair in sorted(pairs.items()):
        entries.setdefault(name, {})[phase] = propagated_entry(pair, dtype)
    return entries


def limit_share(entry: Report) -> float | None:
    """The larger of an entry's two errors, of all elements and of the worst row, as a part of what
    is allowed; None where it is not finite.
    """
    pairs = ((entry["error"], entry["limit"]), (entry["row_error"], entry["row_limit"]))
    if any(error is None or limit is None for error, limit in pairs):
        return None
    return max(float(error / limit) for error, limit in pairs)


def over(entry: Report, dtype: str) -> float:
    """Which ratio would have allowed the entry."""
    share = limit_share(entry)
    return math.inf if share is None else ALLOWED_RATIO[dtype] * share


def explain(entry: Report) -> str:
    """What is wrong with an entry that is not ok."""
    worst = entry["worst"]
    if entry["error"] is None or entry["error"] > entry["limit"]:
        text = f"error {e(entry['error'])}, allowed {e(entry['limit'])}"
    else:
        text = f"error {e(entry['row_error'])} in one row, allowed {e(entry['row_limit'])}"
    if worst:
        text += (
            f"; worst in {worst['place']} at {worst['coordinates']}: expected "
            f"{g(worst['expected'])}, found {g(worst['found'])}"
        )
    return text


def slope_entry(of: Judged) -> Report:
    """A gain or a bias, and what is allowed of it."""
    return {"found": of.slope.found, "dtype": of.slope.rounded, "lowest": of.lowest,
            "highest": of.highest, "ok": of.share <= 1}  # fmt: skip


def describe_slope(name: str) -> str:
    """A gain or a bias by its name in a report."""
    return name if name.startswith(BIAS) else f"gain of {name}"


def explain_slope(of: Judged) -> str:
    """What is wrong with a gain or a bias beyond its limits."""
    return (
        f"{describe_slope(of.name)} {of.slope.found:+.1e}, allowed {of.lowest:+.1e}…"
        f"{of.highest:+.1e}; that of the dtype is {of.slope.rounded:+.1e}"
    )


def parted_entries(result: BlockResult, dtype: str) -> Report:
    """Where chains parted from the exact model in the propagated pass, and what is set aside."""
    aside = result.set_aside
    return {
        "parted": {
            name: {"tokens": of.tokens, "found": of.found, "dtype": of.rounded,
                   "most": most_near_ties(of.rounded, ALLOWED_RATIO[dtype])}
            for name, of in result.parted.items()
        },
        "tokens_set_aside": aside.tokens,
        "tokens_set_aside_by": {"found": aside.found, "dtype": aside.rounded},
    }  # fmt: skip


def choices_entry(choices: Choices) -> Report:
    """How many sets were equal, near ties and wrong."""
    equal = choices.rows - choices.near_ties - choices.wrong
    return {
        "rows": choices.rows, "equal": equal, "near_ties": choices.near_ties,
        "dtype_near_ties": choices.dtype_near_ties,
        "wrong": choices.wrong, "close": choices.close,
        "smallest_margin": number(choices.smallest_margin),
        "largest_lost": number(choices.largest_lost),
    }  # fmt: skip
