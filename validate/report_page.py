"""A report as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from glm_trt.validate.figures import Report, e, g
from glm_trt.validate.report_charts import draw_charts
from glm_trt.validate.report_text import (
    CHOICE_NAMES,
    blocks_line,
    end_to_end_rows,
    graphs_line,
    of_limit,
    problems,
    share,
    title,
    weights_line,
)


@cache
def _template() -> Any:
    text = files("glm_trt.validate").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.globals |= {"share": share, "of_limit": of_limit, "e": e, "g": g}
    return environment.from_string(text)


def page(report: Report) -> str:
    """The page. Needs matplotlib."""
    return _template().render(
        r=report,
        title=f"{title(report)}: {report['bundle']['directory']}",
        problems=problems(report, waived=True),
        blocks_line=blocks_line(report),
        end_to_end=end_to_end_rows(report),
        weights=weights_line(report),
        graphs=graphs_line(report),
        charts=draw_charts(report),
        choice_names=CHOICE_NAMES,
        environment=environment_rows(report),
    )


def environment_rows(report: Report) -> list[tuple[str, str]]:
    """Versions, hashes and the machine, name by name."""
    environment = report["environment"]
    rows = [(name, found) for name, found in environment["versions"].items()]
    rows += [
        ("Python", environment["python"]),
        ("system", environment["system"]),
        ("processor", f"{environment['processor']}, {environment['cores']} cores"),
        ("bundle's key", report["bundle"]["key"]),
        ("exported with",
         ", ".join(f"{name} {found}" for name, found in environment["exported_with"].items())),
    ]  # fmt: skip
    for engine in report["backend"]["engines"]:
        plugins = ", ".join(engine["plugins"]) or "none"
        made = f"{engine['target']}, {report['backend']['name']} {engine['backend_version']}"
        rows.append((f"engine {engine['kind']}", f"{made}; plugins {plugins}; key {engine['key']}"))
    rows += [(f"SHA-256 of {name}", digest) for name, digest in environment["hashes"].items()]
    rows += [(f"SHA-256 of {name}", digest) for name, digest in environment["checkpoint"].items()]
    rows.append(("time", f"{report['seconds']:.1f} s"))
    return rows
