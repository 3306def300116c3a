"""Reports as people get them: the page in a browser, Markdown, JSON by its schema."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from faults import FAULTS, Faulty
from pages import CONTRAST, launch

from glm_trt.cli import main
from glm_trt.model.errors import MissingCapabilityError
from glm_trt.validate.reporting import report_files
from glm_trt.validate.reporting.report_charts import draw_charts
from glm_trt.validate.reporting.report_files import (
    ReportError,
    check_report_place,
    read_report,
    schema,
)
from glm_trt.validate.reporting.report_page import path, prose
from glm_trt.validate.reporting.report_text import percent, summary

pytestmark = pytest.mark.usefixtures("shared_walks")
Made = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module", params=["plain", "hybrid", "fp8", "nvfp4", "faulty"])
def report(
    made: Made, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """The report of each bundle; "faulty" is far out of tolerance, and has what is not finite."""
    place: Path = tmp_path_factory.mktemp("reports")
    faulty = request.param == "faulty"
    checkpoint, bundle = made("hybrid" if faulty else request.param)
    if faulty:
        fault = next(fault for fault in FAULTS if fault.name == "nan_in_a_padded_row")
        copy = Faulty(bundle, place / "bundle")
        fault.edit(copy)
        copy.seal()
        bundle = copy.directory
    command = ["validate", str(bundle), "--checkpoint", str(checkpoint)]
    assert main([*command, "--report", str(place / "r")]) == int(faulty)
    return place / "r"


def test_json_follows_its_schema(report: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    content = read_report(report)
    jsonschema.validate(content, schema())
    wrong = content | {"verdict": True}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema())
    dtype_ulps = content["blocks"][1]["isolated"]["hidden_out"]["prefill"]["ulps"]
    classes = len(content["tolerance"]["ulp_classes"])
    # The last position of a bundle that is short, in every kind that has positions.
    last = content["bundle"]["max_seq_len"] - 1
    assert {of["position"] for of in content["far"]} == {last}
    with_positions = {of["kind"] for of in content["blocks"] if "linear" not in of["kind"]}
    assert {of["kind"] for of in content["far"]} == with_positions - {"head"}
    assert len(dtype_ulps["found"]) == len(dtype_ulps["dtype"]) == classes


def test_only_all_is_100_percent() -> None:
    assert [percent(x) for x in (1.0, 0.999999, 0.5, 0.0)] == [
        "100 %", "99.99 %", "50.00 %", "0.00 %"
    ]  # fmt: skip


def test_markdown(report: Path) -> None:
    text = (report / "report.md").read_text()
    content = read_report(report)
    assert text.startswith("# Passed" if content["ok"] else "# FAILED")
    assert ("## Problems" in text) != content["ok"]
    for block in content["blocks"]:
        assert f"| {block['name']} |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert widths <= {3, 4, 6, 8, 10}, "a cell breaks a table"


@pytest.mark.parametrize("columns", [80, 140])
def test_a_terminal_breaks_no_line(report: Path, columns: int) -> None:
    content = read_report(report)
    whole, lines = summary(content), summary(content, columns).splitlines()
    # But for the bundle's path, which is one word.
    assert max(map(len, lines[1:])) <= columns
    assert max(map(len, whole.splitlines())) > 80  # there is something to break
    assert " ".join(" ".join(lines).split()) == " ".join(whole.split())
    # A value goes on below its beginning; no line begins with a unit.
    values = lines[next(i for i, line in enumerate(lines) if line.startswith("  blocks ")) :]
    begins = {len(line) - len(line.lstrip()) for line in values}
    assert begins <= {2, values[0].index(values[0].split()[1])}
    assert not any(line.lstrip().startswith(("%", "×")) for line in lines)


class Page(HTMLParser):
    """What a page asks for, and what it says to those who cannot see it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if identity := values.get("id"):
            self.ids.append(identity)
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href") and v]
        if values.get("role") == "img":
            self.pictures.append(values.get("aria-label") or "")


def test_the_page_needs_nothing_else(report: Path) -> None:
    text, content = (report / "report.html").read_text(), read_report(report)
    page = Page(text)
    assert not {"script", "iframe", "object", "img"} & {*page.tags}
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<\?xml|<!ENTITY", text)
    assert len(page.ids) == len(set(page.ids)), "two things of one name"
    inner = [link[1:] for link in page.links if link.startswith("#")]
    assert {*inner} <= {*page.ids}
    assert len(page.pictures) >= 3 and all(len(label) > 40 for label in page.pictures)
    assert len(text) < 1 << 20
    # What is beyond its limit has a column in the map, however many outputs there are.
    (heat,) = (chart.svg for chart in draw_charts(content) if chart.name == "heat")
    beyond = [
        f"{name.removesuffix('_out')}, {phase}"
        for block in content["blocks"]
        for name, phases in block["isolated"].items()
        for phase, entry in phases.items()
        if not entry["ok"]
    ]
    assert all(label in heat for label in beyond) and bool(beyond) == ("✕" in heat)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from launch()


SMALLEST_TEXT = """
() => Math.min(...[...document.querySelectorAll("figure svg text")].map(text => {
  const {a, b} = text.getScreenCTM();
  return Math.hypot(a, b) * parseFloat(getComputedStyle(text).fontSize);
}))
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_in_a_browser(browser: Any, report: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((report / "report.html").resolve().as_uri())
    assert not said
    assert [url for url in asked if not url.startswith("data:")] == [page.url]
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0, "the page scrolls sideways"
    least, where = page.evaluate(CONTRAST)
    assert least >= 4.5, where
    # Drawn text stays readable: pictures are not scaled down on a phone.
    assert page.evaluate(SMALLEST_TEXT) >= 8
    # Every table can be reached and scrolled by the keyboard.
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert {
        "Worst elements",
        "Blocks",
        "Gains and biases",
        "Cases",
        "Build and environment",
    } <= reached
    page.emulate_media(media="print", color_scheme=scheme)
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    page.close()


def test_text_in_the_page() -> None:
    assert str(prose("as `a <b>` 1.8e-07, 31 % & `c`")) == (
        'as <code>a &lt;b&gt;</code> <span class="one">1.8e-07</span>, '
        '<span class="one">31 %</span> &amp; <code>c</code>'
    )
    assert str(prose("a ` <b>, 1 of 2")) == "a ` &lt;b&gt;, 1 of 2"
    assert str(path("a/<b>")) == "a/<wbr>&lt;b&gt;"


def test_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ReportError, match="expected a directory, found a file"):
        check_report_place(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        MissingCapabilityError,
        match=r"matplotlib, which is not installed: pip install 'glm-trt\[charts\]'",
    ):
        check_report_place(tmp_path / "new")


def test_what_a_report_says_is_text_and_not_markup(report: Path, tmp_path: Path) -> None:
    content = read_report(report)
    content["bundle"]["directory"] = "</code><script>alert(1)</script>"
    content["cases"][0]["name"] = "a | `b` <b>"
    report_files.write_report(content, tmp_path / "r")
    assert "<script" not in (tmp_path / "r" / "report.html").read_text()
    assert json.loads((tmp_path / "r" / "report.json").read_text()) == content
    assert "a \\| `b` <b>" in (tmp_path / "r" / "report.md").read_text()
