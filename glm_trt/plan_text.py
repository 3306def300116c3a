"""A plan on the terminal: the tables of `glm-trt plan`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from glm_trt.progress import print_table

Plan = dict[str, Any]


def print_plan(plan: Plan) -> None:
    """Everything that a reader compares; the rest is in the JSON."""
    _print_model(plan)
    _print_parameters(plan)
    _print_weights(plan)
    _print_state(plan)
    _print_jobs(plan)
    _print_fit(plan)
    _print_recommended(plan)
    _print_decode(plan)


def _width() -> int:
    """Columns of the terminal; 110 where there is none."""
    return shutil.get_terminal_size((110, 24)).columns


def _say(text: str, indent: int = 2) -> None:
    """A paragraph, in lines that fit the terminal."""
    width = max(_width(), 40)
    print(textwrap.fill(text, width, initial_indent=" " * indent,
                        subsequent_indent=" " * (indent + 2)))  # fmt: skip


def _table(title: str, rows: Sequence[Sequence[str]], text_columns: int = 1) -> None:
    """A titled table; columns from `text_columns` on are numbers, put to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    _say(title, indent=0)
    print_table([
        [cell if i < text_columns else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        for row in rows
    ])  # fmt: skip


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.3f} GiB"


def _print_model(plan: Plan) -> None:
    model, source = plan["model"], plan["source"]
    attention = ", ".join(f"{count} {kind}" for kind, count in model["attention"].items())
    mlp = ", ".join(f"{count} {kind}" for kind, count in model["mlp"].items())
    print(source["name"])
    _say(f"{model['layers']} layers (attention: {attention}; MLP: {mlp}), "
         f"{model['prediction_layers']} MTP, up to {model['max_context']:,} tokens")  # fmt: skip
    if source["files"]:
        size, files = f"{source['stored_bytes']:,} bytes", source["files"]
        _say(f"stored: {size} in {files} safetensors file(s), {source['precision']}")


def _print_parameters(plan: Plan) -> None:
    counts = plan["parameters"]
    total = counts["with_mtp"]
    rows = [(name.replace("_", " "), count) for name, count in counts["components"].items()]
    rows += [("without MTP", counts["without_mtp"]), ("MTP layers", counts["mtp"]),
             ("with MTP", total), ("active a token", counts["active_per_token"])]  # fmt: skip
    _table(
        f"Parameters ({counts['tensors']:,} tensors)",
        [(name, f"{count:,}", f"{count / total:.2%}") for name, count in rows],
    )


def _print_weights(plan: Plan) -> None:
    head = ("", "bytes without MTP", "", "bytes with MTP", "quantised")
    rows = [
        (name, f"{sizes['bytes']:,}", _gb(sizes["bytes"]), f"{sizes['bytes_with_mtp']:,}",
         f"{sizes['quantised_bytes'] / sizes['bytes']:.1%}" if name != "bf16" else "")
        for name, sizes in plan["weights"].items()
    ]  # fmt: skip
    _table("Weights by precision, scales included", [head, *rows])


def _print_state(plan: Plan) -> None:
    state, batch = plan["state"], plan["options"]["batch"]
    parts = [f"{name} {size:,} B a token" for name, size in state["per_token"].items()]
    parts += [f"{name} {size:,} B a sequence" for name, size in state["per_sequence"].items()]
    head = ("context", "state", "", "workspace (estimate)")
    rows = [
        (f"{row['context']:,}", f"{row['bytes']:,} B", _gib(row["bytes"]),
         _gb(sum(size for part, size in work.items() if part != "context")))
        for row, work in zip(state["contexts"], plan["workspace"], strict=True)
    ]  # fmt: skip
    of = "" if batch == 1 else f" of {batch} sequences"
    _table(
        f"State over all layers in bf16: {state['bytes_per_token']:,} B a token, "
        f"{state['bytes_per_sequence']:,} B a sequence",
        [(head[0], head[1] + of, *head[2:]), *rows], text_columns=0,
    )  # fmt: skip
    _say("; ".join(parts))


def _print_jobs(plan: Plan) -> None:
    build = plan["build"]
    export = next(iter(plan["export"].values()))
    rows = [
        ("export, graphs only", f"{_gb(export['disk_bytes'])} of disk",
         f"{_gb(export['host_memory_bytes'])} of memory"),
        *((f"export --materialize, {name}",
           f"{_gb(sizes['disk_bytes_materialized'])} of disk", "the same")
          for name, sizes in plan["export"].items()),
        ("build", f"{_gb(build['disk_bytes'])} of disk",
         f"{_gb(build['host_memory_bytes'])} of memory"),
    ]  # fmt: skip
    kinds, targets = ", ".join(build["kinds"]), ", ".join(build["default_targets"])
    _table("Exporting and building", rows, text_columns=3)
    _say(f"{build['engines_per_target']} engines a target ({kinds})")
    _say(f"{build['engines']} for {targets}; each built in under "
         f"{_gb(build['host_memory_bytes_limit'])} of memory")  # fmt: skip


def _print_fit(plan: Plan) -> None:
    precisions, title = list(plan["weights"]), "GPUs needed by precision and context"
    title += f", batch {plan['options']['batch']}"
    rows = _fit_rows(plan, precisions)
    # Two columns of indentation, and two between columns.
    if sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)) <= _width():
        _table(title, rows)
    else:
        for name in precisions:
            _table(title, _fit_rows(plan, [name]))
    _say("- more than 64, or no even split; * its tensor cores do not multiply this precision")


def _fit_rows(plan: Plan, precisions: list[str]) -> list[tuple[str, ...]]:
    contexts = plan["options"]["contexts"]
    columns = [(name, i) for name in precisions for i in range(len(contexts))]
    entries = {(entry["gpu"], entry["precision"]): entry for entry in plan["fit"]}
    rows = [("", "", *(name if i == 0 else "" for name, i in columns)),
            ("", "memory", *(f"{contexts[i]:,}" for _, i in columns))]  # fmt: skip
    for gpu in plan["gpus"]:
        cells = []
        for name, i in columns:
            entry = entries[gpu["name"], name]
            count = entry["contexts"][i]["gpus"]
            cells.append("-" if count is None else f"{count}{'' if entry['native'] else '*'}")
        rows.append((gpu["name"], f"{gpu['memory_gb']} GB", *cells))
    return rows


def _print_recommended(plan: Plan) -> None:
    titles = {gpu["name"]: gpu["title"] for gpu in plan["gpus"]}
    print("\nRecommended")
    for choice in plan["recommended"]:
        case = f"{choice['precision']} at {choice['context']:,} tokens, batch {choice['batch']}"
        if choice["gpu"] is None:
            _say(f"{case}: none of these GPUs")
            continue
        _say(f"{case}: {choice['gpus']} × {titles[choice['gpu']]}")
        parts = " + ".join(
            f"{_gb(choice[f'{part}_bytes'])} {part}" for part in ("weights", "state", "workspace")
        )
        used, usable = _gb(choice["used_bytes"]), _gb(choice["usable_bytes"])
        _say(f"on each: {parts} = {used} of {usable} usable", indent=4)
        _say(f"room for batch {choice['max_batch']} at this context, or "
             f"{choice['max_context']:,} tokens at this batch", indent=4)  # fmt: skip
        if choice["missing"]:
            _say(f"glm-trt cannot do this yet: {'; '.join(choice['missing'])}", indent=4)
        _say(f"not tried: {'; '.join(choice['untried'])}", indent=4)


def _print_decode(plan: Plan) -> None:
    if not plan["decode"]:
        return
    contexts = plan["options"]["contexts"]
    cells: dict[tuple[str, str, int], list[str]] = {}
    for row in plan["decode"]:
        key = (row["precision"], row["gpu"], row["gpus"])
        read = row["weight_bytes"] + row["state_bytes"]
        cells.setdefault(key, []).append(f"{_gb(read)} {row['tokens_per_second']:>8,.0f}")
    head = ("", *(f"{context:,}" for context in contexts))
    rows = [(f"{name}, {count} × {gpu}", *row) for (name, gpu, count), row in cells.items()]
    _table(
        f"Decode roofline by context, batch {plan['options']['batch']}: bytes a GPU reads a "
        "step, tokens/s at most",
        [head, *rows],
    )
