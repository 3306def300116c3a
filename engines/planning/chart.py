"""The plan as a picture: what a GPU holds against the context, and what GPUs have."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from glm_trt.engines.planning import memory as m
from glm_trt.engines.planning.gpus import GPUS, find_gpu
from glm_trt.engines.planning.plan import Plan, weights_in
from glm_trt.engines.planning.source import Source
from glm_trt.engines.planning.weights import Weights
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.files import write_atomically
from glm_trt.model.requirements import require

FORMATS = (".svg", ".png")
# Okabe and Ito's colours, which colour-blind readers tell apart; light to dark also in grey.
_LAYERS = (("weights", "#0072B2"), ("state", "#56B4E9"), ("workspace", "#E69F00"))
_LABELS = {
    "weights": "weights",
    "state": "state (KV, index keys, recurrent)",
    "workspace": "workspace (estimate)",
}
_LIMIT, _OTHERS, _CONTEXT = "#D55E00", "#8A8A8A", "#444444"
_POINTS = 80


def check_chart(path: Path) -> None:
    """Whether the chart can be drawn, before anything else is done.

    Raises
    ------
    GlmTrtError
        If the name does not end in one of `FORMATS`.
    MissingCapabilityError
        If matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise GlmTrtError(
            f"--chart: expected a name ending in {' or '.join(FORMATS)}, found {path}"
        )
    require("--chart", "charts", "matplotlib")


def write_chart(path: Path, source: Source, plan: Plan) -> None:
    """Draw a panel for each precision, on the GPUs that the plan recommends for it.

    Raises
    ------
    GlmTrtError
        If no precision fits any GPU, or `path` cannot be written.
    """
    check_chart(path)
    choices = [choice for choice in plan["recommended"] if choice["gpu"]]
    if not choices:
        raise GlmTrtError("--chart: nothing to draw: no precision fits on any of the GPUs")
    picture = io.BytesIO()
    _figure(source, plan, choices).savefig(picture, format=path.suffix[1:].lower(), dpi=150)
    write_atomically(path, picture.getvalue())


def _figure(source: Source, plan: Plan, choices: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8, 1.4 + 4.4 * len(choices)), 5.4), layout="constrained")
    panels = figure.subplots(1, len(choices), sharey=True, squeeze=False)[0]
    batch, with_mtp = plan["options"]["batch"], plan["options"]["mtp"]
    for panel, choice in zip(panels, choices, strict=True):
        weights = weights_in(source, choice["precision"], with_mtp)
        _draw_panel(panel, weights, choice, plan["options"]["contexts"], batch)
    highest = max(GPUS[choice["gpu"]].memory_gb for choice in choices)
    used = max(choice["used_bytes"] for choice in choices) / 1e9
    panels[0].set_ylim(0, 1.12 * max(highest, used))
    panels[0].set_ylabel("memory of one GPU (GB = 10⁹ bytes)")
    for panel, choice in zip(panels, choices, strict=True):
        _draw_limits(panel, choice, panels[0].get_ylim()[1])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=3 if len(choices) < 3 else 5,
        frameon=False,
        fontsize=9,
    )
    sequences = f"{batch} sequence{'s' if batch > 1 else ''}"
    total = plan["parameters"]["with_mtp" if with_mtp else "without_mtp"]
    figure.suptitle(
        f"Memory of one GPU against context: {total / 1e9:,.1f} B parameters, {sequences}"
    )
    return figure


def _draw_panel(
    panel: Any, weights: Weights, choice: dict[str, Any], contexts: list[int], batch: int
) -> None:
    most = weights.config.max_position_embeddings
    positions = sorted({1 + (most - 1) * i // _POINTS for i in range(_POINTS + 1)})
    loads = [m.rank_load(weights, choice["gpus"], context, batch) for context in positions]
    thousands = [context / 1000 for context in positions]
    heights = {name: [getattr(load, name) / 1e9 for load in loads] for name, _ in _LAYERS}
    panel.stackplot(
        thousands,
        *heights.values(),
        labels=[_LABELS[name] for name in heights],
        colors=[color for _, color in _LAYERS],
        linewidth=0,
    )
    for context in contexts:
        total = m.rank_load(weights, choice["gpus"], context, batch).total / 1e9
        panel.plot([context / 1000], [total], "o", color=_CONTEXT, markersize=4)
        side = 0.0 if context < 0.2 * most else 1.0 if context > 0.8 * most else 0.5
        panel.annotate(
            f"{total:,.1f} GB\nat {context:,}",
            (context / 1000, total), (6 * (0.5 - side), -12), textcoords="offset points",
            ha=("left", "center", "right")[int(2 * side)], va="top", fontsize=8,
            bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": "none", "alpha": 0.9},
        )  # fmt: skip
    gpus = choice["gpus"]
    panel.set_title(f"{choice['precision']} on {gpus} × {find_gpu(choice['gpu']).title}")
    panel.set_xlim(0, most / 1000)
    panel.set_xlabel("context (thousands of tokens)")
    panel.spines[["top", "right"]].set_visible(False)


def _draw_limits(panel: Any, choice: dict[str, Any], top: float) -> None:
    """The recommended GPU's memory and its usable part, and fainter that of others in sight which
    could hold the weights.
    """
    right = panel.get_xlim()[1]
    gpu = GPUS[choice["gpu"]]
    usable = choice["usable_bytes"] / 1e9
    panel.axhline(gpu.memory_gb, color=_LIMIT, linewidth=1.8, label="memory of the GPU")
    panel.axhline(usable, color=_LIMIT, linewidth=1.5, linestyle=(0, (4, 2)), label="usable part")
    panel.text(0.01 * right, gpu.memory_gb, gpu.title, fontsize=9, va="bottom", color=_LIMIT,
               fontweight="bold")  # fmt: skip
    panel.text(0.01 * right, usable, "usable", fontsize=8, va="bottom", color=_LIMIT)
    lines = [gpu.memory_gb, usable, choice["used_bytes"] / 1e9]
    for other in GPUS.values():
        apart = all(abs(other.memory_gb - line) > 0.06 * top for line in lines)
        if apart and 1.05 * choice["weights_bytes"] / 1e9 < other.memory_gb < 0.95 * top:
            lines.append(other.memory_gb)
            panel.axhline(other.memory_gb, color=_OTHERS, linewidth=1, linestyle=":", zorder=3)
            place = 0.01 * right, other.memory_gb
            panel.text(*place, other.title, fontsize=8, va="bottom", color=_CONTEXT)
