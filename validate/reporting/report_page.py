"""A report as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from glm_trt.validate.judging.figures import Report, e, g
from glm_trt.validate.judging.limits import limit_share
from glm_trt.validate.reporting.report_charts import draw_charts
from glm_trt.validate.reporting.report_slopes import part, worst_slopes
from glm_trt.validate.reporting.report_text import (
    CHOICE_NAMES,
    blocks_line,
    checked_rows,
    end_to_end_rows,
    of_limit,
    problems,
    title,
)


@cache
def _template() -> Any:
    file = files("glm_trt.validate.reporting").joinpath("report.html.jinja")
    text = file.read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.globals |= {"of_limit": of_limit, "limit_share": limit_share, "e": e, "g": g}
    environment.globals["part"] = part
    environment.filters |= {"prose": prose, "path": path}
    return environment.from_string(text)


# What no line may end in: a number with an exponent, or before its unit.
_ONE = re.compile(r"[+-]?\d[\d.,]*(?:e[+-]\d+)?(?:[ ](?:%|×))?")


def prose(text: str) -> Markup:
    """A sentence as HTML: what is in backticks as code, and numbers unbroken."""
    parts = str(escape(text)).split("`")
    if len(parts) % 2 == 0:  # one that is alone is a backtick
        return Markup(_whole_numbers("`".join(parts)))
    return Markup("".join(
        f"<code>{part}</code>" if i % 2 else _whole_numbers(part) for i, part in enumerate(parts)
    ))  # fmt: skip


def path(text: str) -> Markup:
    """A name as HTML, which may be broken behind a slash."""
    return Markup(str(escape(text)).replace("/", "/<wbr>"))


def _whole_numbers(text: str) -> str:
    def keep(match: re.Match[str]) -> str:
        found = match.group()
        return f'<span class="one">{found}</span>' if {*found} & {*" e"} else found

    return _ONE.sub(keep, text)


def page(report: Report) -> str:
    """The page. Needs matplotlib."""
    return _template().render(
        r=report,
        title=f"{title(report)}: {report['bundle']['directory']}",
        problems=problems(report, waived=True),
        blocks_line=blocks_line(report),
        end_to_end=end_to_end_rows(report),
        checked=checked_rows(report),
        slopes=worst_slopes(report),
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
