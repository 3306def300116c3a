"""The pictures of a report, drawn by matplotlib: SVG that takes its colours from the page.

Drawn for a width of 400 pixels, so that text stays readable on a phone; a page shows several side
by side where it is wider.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from glm_trt.validate.judging.figures import Report, e
from glm_trt.validate.judging.limits import limit_share
from glm_trt.validate.reporting.report_text import CHOICE_NAMES, choices, share

# What is drawn in these colours, the page colours by its variables: dark, light or printed.
# Okabe and Ito's, which colour-blind readers tell apart; marks and line styles differ too.
INK, FAINT = "#101112", "#8a8b8c"
COLORS = {
    INK: "--ink", FAINT: "--faint",
    "#0072b2": "--blue", "#d55e00": "--orange", "#009e73": "--green", "#cc79a7": "--pink",
}  # fmt: skip
BLUE, ORANGE, GREEN, PINK = (color for color in COLORS if color not in (INK, FAINT))
WIDTH, HEIGHT = 4.2, 2.9  # inches of 96 pixels
ANGLES = ("cos", "sin")
# Columns of the heat map.
MOST_COLUMNS = 12
# Rows of it up to which there are numbers in its cells.
MOST_NUMBERED = 24
_DPI = 96


@dataclass(frozen=True)
class Chart:
    """A picture: `text` says for those who cannot see it what it shows."""

    name: str
    title: str
    text: str
    svg: str


def draw_charts(report: Report) -> list[Chart]:
    """Every picture that there is something to draw for."""
    charts = [_depth(report), _heat_map(report), _ulps(report)]
    if choices(report):
        charts.append(_choices(report))
    return charts


def _figure(height: float = HEIGHT, columns: int = 1, rows: int = 1, **options: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=_DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **options)
    for panel in panels.flat:
        panel.patch.set_visible(False)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(FAINT)
        panel.tick_params(colors=INK, labelsize=8, which="both")
        panel.xaxis.label.set_color(INK)
        panel.yaxis.label.set_color(INK)
    figure.patch.set_visible(False)
    return figure, panels


def _svg(figure: Any, name: str) -> str:
    """The figure's SVG element, its colours as the page's variables and its ids its own."""
    from matplotlib import rc_context

    written = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for color, variable in COLORS.items():
        text = re.sub(color, f"var({variable})", text, flags=re.IGNORECASE)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    # The page scales it; the figure around it has the text for those who do not see it.
    width, height = (72 * inches for inches in figure.get_size_inches())
    return re.sub(
        r"<svg [^>]*>",
        f'<svg viewBox="0 0 {width:g} {height:g}" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true" focusable="false">',
        text, count=1,
    )  # fmt: skip


def _short(name: str) -> str:
    return name.removeprefix("layer.")


def _depth(report: Report) -> Chart:
    """Error by depth: of each block alone and gathered, the backend's and what its dtype costs."""
    dtype = report["backend"]["dtype"]
    blocks = report["blocks"]
    place = np.arange(len(blocks))
    figure, panels = _figure(3.3)
    panel = panels[0, 0]
    styles = {
        ("isolated", "error"): (BLUE, "o", "-", "block alone, backend"),
        ("isolated", "dtype_error"): (BLUE, None, ":", f"block alone, {dtype}"),
        ("propagated", "error"): (ORANGE, "s", "-", "gathered, backend"),
        ("propagated", "dtype_error"): (ORANGE, None, ":", f"gathered, {dtype}"),
    }
    drawn = False
    for (mode, key), (color, marker, line, label) in styles.items():
        values = [_handed_on(block[mode], key) for block in blocks]
        finite = [v if v is not None and 0 < v < math.inf else math.nan for v in values]
        drawn |= not all(map(math.isnan, finite))
        panel.plot(place, finite, color=color, marker=marker, markersize=4, linestyle=line,
                   linewidth=1.4, label=label)  # fmt: skip
        for x in (i for i, v in enumerate(values) if v == math.inf):
            panel.annotate("not\nfinite", (x, 0.97), xycoords=("data", "axes fraction"), va="top",
                           ha="center", fontsize=8, color=color)  # fmt: skip
    if drawn:
        panel.set_yscale("log")
    _name_blocks(panel, blocks)
    panel.set_ylabel("relative L2 error", fontsize=8)
    panel.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False, labelcolor=INK)
    text = "; ".join(
        f"{block['name']}: alone {_value(block['isolated'])}, gathered "
        f"{_value(block['propagated'])}"
        for block in _some(blocks)
    )
    text = f"Relative error of what blocks hand on. {text}."
    return Chart("depth", "Error by depth", text, _svg(figure, "depth"))


def _handed_on(outputs: Report, key: str) -> float | None:
    """The largest error over all phases of a block's own output; ∞ if not finite, None if none."""
    phases = outputs.get("hidden_out") or outputs.get("logits") or {}
    values = [math.inf if entry[key] is None else entry[key] for entry in phases.values()]
    return max(values, default=None)


def _value(outputs: Report) -> str:
    value = _handed_on(outputs, "error")
    return "none" if value is None else e(value if value < math.inf else None)


def _some(blocks: list[Report]) -> list[Report]:
    """Few enough blocks to be read aloud: the first, the last, and some between them."""
    return [blocks[i] for i in np.unique(np.linspace(0, len(blocks) - 1, 8).astype(int))]


def _name_blocks(panel: Any, blocks: list[Report]) -> None:
    step = max(1, math.ceil(len(blocks) / 14))
    place = range(0, len(blocks), step)
    long = {i: _short(blocks[i]["name"]) for i in place}
    panel.set_xticks(list(place), list(long.values()), rotation=90, fontsize=8)
    panel.set_xlim(-0.6, len(blocks) - 0.4)
    panel.set_xlabel("block (numbers: decoder layers)", fontsize=8)


def _heat_map(report: Report) -> Chart:
    """Layer × output: the error as a part of its limit."""
    from matplotlib.colors import LogNorm

    blocks = report["blocks"]
    columns = _columns(blocks)
    values = np.full((len(blocks), len(columns)), np.nan)
    lost = np.zeros(values.shape, bool)
    for row, block in enumerate(blocks):
        for column, (name, phase) in enumerate(columns):
            entry = block["isolated"].get(name, {}).get(phase)
            if entry is None:
                continue
            found = limit_share(entry)
            lost[row, column] = found is None
            values[row, column] = math.nan if found is None else max(found, 1e-2)
    figure, panels = _figure(1.7 + max(1.6, min(len(blocks) * 0.24, 9.0)))
    panel = panels[0, 0]
    colors = {"cmap": "RdYlBu_r", "norm": LogNorm(0.01, 100), "edgecolors": FAINT, "linewidth": 0.2}
    mesh = panel.pcolormesh(np.ma.masked_invalid(values), **colors)
    panel.invert_yaxis()
    for row, column in zip(*np.nonzero(lost), strict=True):
        panel.text(column + 0.5, row + 0.5, "✕", ha="center", va="center", fontsize=9, color=ORANGE)
    if len(blocks) <= MOST_NUMBERED:
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            value = values[row, column]
            # On the map's own colours, light in the middle and dark at its ends.
            color = "#000000" if 0.03 < value < 30 else "#ffffff"
            text = "<.01" if value <= 0.01 else f"{value:.2g}" if value < 100 else f"{value:.0e}"
            text = text.replace("e+0", "e").replace("e+", "e")
            panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7.2,
                       color=color)  # fmt: skip
    step = max(1, math.ceil(len(blocks) / 40))
    rows = range(0, len(blocks), step)
    panel.set_yticks([row + 0.5 for row in rows], [_short(blocks[row]["name"]) for row in rows])
    labels = [f"{name.removesuffix('_out')}, {phase}" for name, phase in columns]
    panel.set_xticks([i + 0.5 for i in range(len(columns))], labels, rotation=90, fontsize=8)
    panel.xaxis.set_ticks_position("top")
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    bar = figure.colorbar(mesh, ax=panel, orientation="horizontal", aspect=40, pad=0.02)
    bar.set_label("error ÷ limit (above 1: out of tolerance)", fontsize=8, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set_visible(False)
    worst = report["offenders"][0] if report["offenders"] else None
    text = "" if worst is None else (
        f" Worst: {worst['block']} {worst['output']}, {worst['phase']}, {share(worst['share'])}."
    )  # fmt: skip
    return Chart("heat", "Error against its limit, by block and output",
                 f"Each block's outputs, as parts of what is allowed; a cross is not finite.{text}",
                 _svg(figure, "heat"))  # fmt: skip


def _columns(blocks: list[Report]) -> list[tuple[str, str]]:
    """Outputs and phases, without the rotary angles, which no layer makes. Where there are too
    many, those beyond their limit are kept first, then what blocks hand on, of text before probes,
    then what most have.
    """
    counted: dict[tuple[str, str], int] = {}
    beyond: set[tuple[str, str]] = set()
    for block in blocks:
        for name in block["isolated"].keys() - {*ANGLES}:
            for phase, entry in block["isolated"][name].items():
                counted[name, phase] = counted.get((name, phase), 0) + 1
                beyond |= set() if entry["ok"] else {(name, phase)}
    handed_on = {column for column in counted if column[0] in ("hidden_out", "logits")}
    of_text = {column for column in handed_on if column[1] in ("prefill", "decode")}

    def rank(column: tuple[str, str]) -> Any:
        kept = [column not in of for of in (beyond, of_text, handed_on)]
        return *kept, -counted[column], column

    return sorted(sorted(counted, key=rank)[:MOST_COLUMNS], key=lambda x: (x not in handed_on, x))


def _ulps(report: Report) -> Chart:
    """How many elements differ by how many units in the last place."""
    pooled: dict[str, dict[str, Any]] = {}
    for block in report["blocks"]:
        for name, phases in block["isolated"].items():
            group = {"hidden_out": "hidden states", "logits": "logits"}.get(name, "states")
            if name in ANGLES:
                continue
            for entry in phases.values():
                into = pooled.setdefault(group, {"found": 0, "dtype": 0})
                for key in into:
                    into[key] = into[key] + np.array(entry["ulps"][key])
    groups = [name for name in ("hidden states", "states", "logits") if name in pooled]
    labels = report["tolerance"]["ulp_classes"]
    figure, panels = _figure(0.9 + 1.15 * len(groups), rows=len(groups), sharex=True)
    last = max(int(np.flatnonzero(x[key])[-1]) if np.any(x[key]) else 0
               for x in pooled.values() for key in x)  # fmt: skip
    shown = range(min(max(last + 1, 4), len(labels)))
    for panel, group in zip(panels[:, 0], groups, strict=True):
        for key, color, offset, label in (
            ("found", BLUE, -0.2, "backend"), ("dtype", ORANGE, 0.2, report["backend"]["dtype"])
        ):  # fmt: skip
            counts = pooled[group][key]
            shares = 100 * counts / max(counts.sum(), 1)
            panel.bar([i + offset for i in shown], shares[: len(shown)], 0.4, color=color,
                      label=label)  # fmt: skip
        panel.set_yscale("log")
        panel.set_ylim(bottom=1e-4, top=150)
        panel.set_yticks([1e-4, 1e-2, 1, 100], ["0.0001", "0.01", "1", "100"])
        panel.set_ylabel(f"{group}\n(% of elements)", fontsize=8)
        panel.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize=8, frameon=False,
                  labelcolor=INK)  # fmt: skip
    panels[-1, 0].set_xticks(list(shown), [_power(labels[i]) for i in shown], rotation=90,
                             fontsize=8)  # fmt: skip
    panels[-1, 0].set_xlabel("difference in units in the last place", fontsize=8)
    text = "; ".join(
        f"{group}: {100 * x['found'][:3].sum() / max(x['found'].sum(), 1):.1f} % within one unit "
        f"(eager {100 * x['dtype'][:3].sum() / max(x['dtype'].sum(), 1):.1f} %)"
        for group, x in pooled.items()
    )
    return Chart("ulps", "Differences in units in the last place", f"{text}.",
                 _svg(figure, "ulps"))  # fmt: skip


def _power(label: str) -> str:
    """A class's label with large powers of two as such."""
    sign, number = label.split()
    value = float(number)
    return f"{sign} 2^{int(math.log2(value))}" if value > 1000 else label


def _choices(report: Report) -> Chart:
    """Of each block, how many sets of experts and positions differ, and how close they were."""
    blocks = [block for block in report["blocks"] if block["choices"]]
    names = [n for n in CHOICE_NAMES if any(n in block["choices"] for block in blocks)]
    figure, panels = _figure(0.9 + 1.5 * len(names), rows=len(names), sharex=True)
    place = np.arange(len(blocks))
    for panel, name in zip(panels[:, 0], names, strict=True):
        found = [block["choices"].get(name) for block in blocks]

        def part(key: str, found: list[Any] = found) -> Any:
            return np.array([100 * x[key] / max(x["rows"], 1) if x else 0.0 for x in found])

        panel.bar(place, part("close"), 0.8, color=FAINT, alpha=0.45,
                  label="rounding could decide")  # fmt: skip
        panel.bar(place, part("near_ties"), 0.5, color=BLUE, label="near tie, chosen otherwise")
        panel.bar(place, part("wrong"), 0.5, bottom=part("near_ties"), color=ORANGE,
                  label="wrong", hatch="///", edgecolor=INK, linewidth=0.4)  # fmt: skip
        panel.set_ylabel(f"{CHOICE_NAMES[name]}\n(% of sets)", fontsize=8)
        panel.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
        top = max(float(max(part("close").max(), (part("near_ties") + part("wrong")).max())), 0.1)
        panel.set_ylim(0, 1.15 * top)
    _name_blocks(panels[-1, 0], blocks)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=1, fontsize=8, frameon=False,
                  labelcolor=INK)  # fmt: skip
    text = "; ".join(
        f"{CHOICE_NAMES[name]}: {counts['equal']:,} of {counts['rows']:,} equal, "
        f"{counts['near_ties']:,} near ties, {counts['wrong']} wrong"
        for name, counts in choices(report).items()
    )
    return Chart("choices", "Agreement of experts and positions", f"{text}.",
                 _svg(figure, "choices"))  # fmt: skip
