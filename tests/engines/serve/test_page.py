"""The page at `/` in a browser: against a server, and against answers that are scripted.

A scripted answer takes the place of `fetch` for chats alone; its events come when the test says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pages import CONTRAST, launch
from servers import Running, Start

MODEL = "glm-5.1"
WIDTHS, SCHEMES = (400, 1400), ("light", "dark")
SCRIPTED = """
(() => {
  const real = window.fetch;
  window.bodies = [];
  window.aborted = 0;
  window.refusals = [];
  window.fetch = async (url, options = {}) => {
    if (!String(url).endsWith("chat/completions")) return real(url, options);
    window.bodies.push(options.body);
    const refusal = window.refusals.shift();
    if (refusal) {
      const [status, message] = refusal;
      const headers = status === 429 ? {"Retry-After": "5"} : {};
      return new Response(JSON.stringify({error: {message}}), {status, headers});
    }
    const stream = new ReadableStream({
      start(controller) {
        const encoder = new TextEncoder();
        window.give = text => controller.enqueue(encoder.encode(text));
        window.cut = () => controller.error(new TypeError("network error"));
        options.signal.addEventListener("abort", () => {
          window.aborted += 1;
          window.give = null;
          controller.error(new DOMException("aborted", "AbortError"));
        });
      },
    });
    return new Response(stream, {headers: {"Content-Type": "text/event-stream"}});
  };
})();
"""


# Waits until the page has asked.
GIVE = """
async ([text, last]) => {
  while (!window.give) await new Promise(again => setTimeout(again, 5));
  window.give(text);
  if (last) window.give = null;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from launch()


class Opened:
    """The page, and what it did that a page of ours must not do."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(f"{url}/")

    def ask(self, text: str) -> None:
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def give(self, *deltas: dict[str, Any], finish: str | None = None) -> None:
        """Events of a scripted answer, the last ones if it is to end."""
        chunks: list[Any] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
        ]
        if finish is not None:
            chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
            chunks.append({"choices": [], "usage": {"completion_tokens": 1234}})
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        self.page.evaluate(GIVE, [text + ("data: [DONE]\n\n" if finish else ""), bool(finish)])

    def idle(self) -> None:
        """Wait for the answer's end."""
        self.page.wait_for_selector("#send", state="visible", timeout=60_000)

    def bodies(self) -> list[dict[str, Any]]:
        """Of the scripted requests."""
        return [json.loads(body) for body in self.page.evaluate("bodies")]

    def check(self) -> None:
        """No error, no request to elsewhere, nothing wider than the window."""
        assert not self.said
        assert self.asked and all(url.startswith(f"{self.url}/") for url in self.asked)
        page = self.page
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert page.evaluate("scroll => scroll.scrollWidth - scroll.clientWidth",
                             page.query_selector("#scroll")) <= 0  # fmt: skip
        assert page.evaluate("document.documentElement.scrollHeight - window.innerHeight") <= 0
        least, where = page.evaluate(CONTRAST)
        assert least >= 4.5, where


@pytest.fixture
def opened(browser: Any, server: Running) -> Iterator[Any]:
    pages: list[Opened] = []

    def open_page(
        width: int = 1400, scheme: str = "light", scripted: bool = True, url: str = server.url
    ) -> Opened:
        page = browser.new_page(viewport={"width": width, "height": 860}, color_scheme=scheme)
        page.set_default_timeout(20_000)
        if scripted:
            page.add_init_script(SCRIPTED)
        pages.append(Opened(page, url))
        return pages[-1]

    yield open_page
    for one in pages:
        one.page.close()


def test_the_files_and_their_policy(server: Running) -> None:
    page = httpx2.get(f"{server.url}/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert "unsafe" not in policy and "http" not in policy
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript"),
                       ("icon.svg", "image/svg+xml")):  # fmt: skip
        part = httpx2.get(f"{server.url}/page/{name}")
        assert part.is_success and part.headers["content-type"].startswith(kind)
        assert part.headers["content-security-policy"] == policy
    for name in ("nothing.js", "..%2Fapp.py", "%2e%2e/app.py"):
        assert httpx2.get(f"{server.url}/page/{name}").status_code == 404


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_conversation_with_the_server(opened: Any, width: int, scheme: str) -> None:
    here = opened(width, scheme, scripted=False)
    page = here.page
    page.wait_for_selector("#server[data-state=ready]")
    assert page.title() == MODEL and "4,096 tokens" in page.text_content("#server-text")
    here.check()
    if width == 400:
        page.click("#toggle")
    page.fill("#max_tokens", "12")
    page.fill("#seed", "18446744073709551615")
    page.fill("#temperature", "0.8")
    here.check()
    if width == 400:
        page.press("#seed", "Escape")
        page.wait_for_selector("#settings", state="hidden")
    texts = []
    for i in range(2):
        here.ask("def main():")
        here.idle()
        texts.append(page.locator(".answer .body").nth(i).text_content())
        assert "tokens" in page.locator(".facts").nth(i).text_content()
        assert "first after" in page.locator(".facts").nth(i).text_content()
    assert all(texts)
    page.click("#clear")
    assert page.locator(".turn").count() == 0
    here.ask("def main():")  # the same seed, and nothing before it
    here.idle()
    assert page.locator(".answer .body").text_content() == texts[0]
    here.check()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_reasoning_calls_and_results(opened: Any, width: int, scheme: str) -> None:
    here = opened(width, scheme)
    page = here.page
    if width == 400:
        page.click("#toggle")
    page.fill("#system", "Be brief.")
    page.click("#example")
    page.select_option("#tool_choice", "required")
    if width == 400:
        page.click("#done")
    here.ask("How is the weather?")
    here.give({"role": "assistant", "content": ""}, {"reasoning_content": "I look "})
    page.wait_for_selector(".reasoning[open] .thoughts")
    here.give({"reasoning_content": "it up."})
    call = {"index": 0, "id": "call_1", "type": "function"}
    here.give(
        {"content": "One moment."},
        {"tool_calls": [call | {"function": {"name": "get_weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "'}}]},
    )
    page.wait_for_selector(".reasoning:not([open])")
    assert re.fullmatch(r"Reasoned for \d+\.\d+ s", page.text_content("summary"))
    assert page.text_content(".thoughts") == "I look it up."
    second = {"name": "get_weather", "arguments": json.dumps({"city": "x" * 200})}
    here.give(
        {"tool_calls": [{"index": 0, "function": {"arguments": 'Wien"}'}}]},
        {"tool_calls": [{"index": 1, "id": "call_2", "type": "function", "function": second}]},
        finish="tool_calls",
    )
    fields = page.locator(".call textarea")
    fields.nth(1).wait_for()
    assert page.text_content(".call pre") == '{\n  "city": "Wien"\n}'
    assert "1,234 tokens" in page.text_content(".facts")
    fields.nth(0).fill('{"temperature": 21}')
    fields.nth(0).press("Enter")
    page.keyboard.type("rain")
    here.check()
    page.evaluate("document.getElementById('top_p').value = 2")
    page.keyboard.press("Enter")  # is not sent, and not lost
    page.wait_for_selector("#top_p[aria-invalid=true]")
    page.fill("#top_p", "")
    if width == 400:
        page.click("#done")
    fields.nth(1).press("Enter")
    here.give({"content": "Fine."}, finish="stop")
    here.idle()
    assert page.locator(".content").last.text_content() == "Fine."
    assert page.locator(".result pre").all_text_contents() == ['{"temperature": 21}', "rain"]
    here.check()
    first, then = here.bodies()
    assert first["messages"] == [{"role": "system", "content": "Be brief."},
                                 {"role": "user", "content": "How is the weather?"}]  # fmt: skip
    assert first["tools"][0]["function"]["name"] == "get_weather"
    assert first["tool_choice"] == "required" and first["thinking"] == {"type": "enabled"}
    assert then["messages"][2:] == [
        {"role": "assistant", "content": "One moment.", "reasoning_content": "I look it up.",
         "tool_calls": [
             {"id": "call_1", "type": "function",
              "function": {"name": "get_weather", "arguments": '{"city": "Wien"}'}},
             {"id": "call_2", "type": "function", "function": second}]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 21}'},
        {"role": "tool", "tool_call_id": "call_2", "content": "rain"},
    ]  # fmt: skip


def test_a_call_by_the_model_itself(opened: Any, dialogue_server: Running) -> None:
    here = opened(400, "dark", scripted=False, url=dialogue_server.url)
    page = here.page
    page.click("#toggle")
    page.click("#example")
    page.fill("#temperature", "0")
    page.click("#done")
    here.ask("What is the weather in Vienna?")
    page.wait_for_selector(".call textarea")
    assert page.text_content(".call .name") == "get_weather"
    assert "city" in json.loads(page.text_content(".call pre"))
    assert page.text_content(".thoughts")
    here.check()
    page.fill(".call textarea", '{"sky": "rain", "degrees": 12}')
    page.press(".call textarea", "Enter")
    here.idle()
    assert page.locator(".answer").last.locator(".content").text_content()
    assert page.locator(".failure").count() == 0
    here.check()


def test_what_the_page_sends_is_a_request(opened: Any, server: Running) -> None:
    """The server takes all of it: fields that the page makes up would be refused."""
    here = opened(scripted=False)
    page = here.page
    for name, value in (("temperature", "0.5"), ("top_p", "0.9"), ("max_tokens", "2"),
                        ("seed", "3"), ("system", "Be brief.")):  # fmt: skip
        page.fill(f"#{name}", value)
    page.uncheck("#thinking")
    here.ask("def main():")
    here.idle()
    assert "2 tokens" in page.text_content(".facts")
    here.check()


HOSTILE = """<img src=x onerror="document.title='taken'"><script>document.title='taken'</script>
[a](javascript:alert(1)) **<b>bold</b>** `<i>code</i>`

```<svg onload="document.title='taken'">
</code></pre><script>document.title='taken'</script>
```
- <iframe src="https://example.com"></iframe>
"""


def test_text_stays_text(opened: Any) -> None:
    here = opened(400)
    page = here.page
    page.wait_for_selector("#server[data-state=ready]")
    here.ask(HOSTILE)
    here.give({"reasoning_content": HOSTILE}, {"content": HOSTILE[:3]}, {"content": HOSTILE[3:]})
    call = {"name": "<b>name</b>", "arguments": json.dumps({"<u>": "</pre><s>"})}
    here.give({"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": call}]},
              finish="stop")  # fmt: skip
    here.idle()
    assert page.title() == MODEL
    made = page.locator(
        "#log img, #log script, #log svg, #log iframe, #log b, #log i, #log a, #log s"
    )
    assert made.count() == 0
    assert page.text_content(".said") == HOSTILE
    assert page.locator(".content strong").text_content() == "<b>bold</b>"
    assert page.locator(".content :not(pre) > code").text_content() == "<i>code</i>"
    assert "</code></pre><script>" in page.locator(".content pre code").text_content()
    assert page.text_content(".call .name") == "<b>name</b>"
    here.check()


MARKDOWN = """# Title
One `x` and **two
lines**.

1. first
   - nested
2. second

```python
def f():

    return "**not bold**"
```
- [ ] *, #hash and 3.14 stay
~~~
an open fence"""


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_markdown_is_the_same_however_it_is_cut(opened: Any, step: int) -> None:
    here = opened()
    page = here.page
    here.ask("Go")
    for i in range(0, len(MARKDOWN), step):
        here.give({"content": MARKDOWN[i : i + step]})
    here.give(finish="stop")
    here.idle()
    found = page.evaluate(
        """() => [...document.querySelector(".content").children].map(element =>
             [element.localName, (element.querySelector("pre") ?? element).textContent])"""
    )
    assert found == [
        ["p", "Title"], ["p", "One x and **two\nlines**."], ["ol", "first"], ["ul", "nested"],
        ["ol", "second"], ["figure", 'def f():\n\n    return "**not bold**"\n'],
        ["ul", "[ ] *, #hash and 3.14 stay"], ["figure", "an open fence\n"],
    ]  # fmt: skip
    assert page.locator(".content ol").nth(1).get_attribute("start") == "2"


def test_stop(opened: Any, server: Running) -> None:
    """By the key and by the button; what came stays, and the server has a row free again."""
    here = opened(scripted=False)
    page = here.page
    page.fill("#max_tokens", "3000")

    def without_end(route: Any) -> None:
        body = json.loads(route.request.post_data)
        route.continue_(post_data=json.dumps(body | {"ignore_eos": True}))

    page.route("**/v1/chat/completions", without_end)
    has_text = """number => {
        const answers = document.querySelectorAll(".answer");
        const content = answers[number - 1]?.querySelector(".content");
        return answers.length === number && content?.textContent;
    }"""
    presses = (lambda: page.keyboard.press("Escape"), lambda: page.click("#stop"))
    for number, press in enumerate(presses, 1):
        here.ask("def main():")
        page.wait_for_function(has_text, arg=number)
        press()
        here.idle()
        facts = page.locator(".facts").last.text_content()
        assert "stopped" in facts and "first after" in facts
        assert page.locator(".content").last.text_content()
    here.check()
    for _ in range(50):
        metrics = httpx2.get(f"{server.url}/metrics").text
        running = [x for x in metrics.splitlines() if "requests_running" in x and x[0] != "#"]
        if running and float(running[0].rpartition(" ")[2]) == 0:
            break
        page.wait_for_timeout(100)
    else:
        pytest.fail(f"a stopped answer goes on: {running}")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_conversation_scrolls_within_the_page(opened: Any, width: int) -> None:
    here = opened(width)
    for text in ("First", "Second"):
        here.ask(text)
        here.give({"content": "A line.\n\n" * 200}, finish="stop")
        here.idle()
    scroll = here.page.query_selector("#scroll")
    assert here.page.evaluate("scroll => scroll.scrollHeight - scroll.clientHeight", scroll) > 2000
    here.check()


def test_a_stopped_answer_is_part_of_the_conversation(opened: Any) -> None:
    here = opened()
    here.ask("First")
    function = {"name": "f", "arguments": '{"a": '}
    call = {"index": 0, "id": "1", "type": "function", "function": function}
    here.give({"content": "Half"}, {"tool_calls": [call]})
    here.page.wait_for_selector(".call")
    here.page.keyboard.press("Escape")
    here.idle()
    assert here.page.evaluate("aborted") == 1
    assert "Cut before" in here.page.text_content(".call")
    here.ask("Second")
    here.give({"content": "Whole"}, finish="length")
    here.idle()
    assert "cut at max tokens" in here.page.locator(".facts").last.text_content()
    assert here.bodies()[1]["messages"] == [
        {"role": "user", "content": "First"}, {"role": "assistant", "content": "Half"},
        {"role": "user", "content": "Second"},
    ]  # fmt: skip


@pytest.mark.parametrize(("status", "said", "expected"), [
    (429, "64 requests wait", ["The server is busy.", "64 requests wait", "Try again in 5 s."]),
    (503, "no row became free in 60 s", ["no place for this now", "no row became free in 60 s"]),
    (400, "messages: 5000 tokens do not fit", ["refused", "messages: 5000 tokens do not fit"]),
])  # fmt: skip
def test_refusals_in_words(opened: Any, status: int, said: str, expected: list[str]) -> None:
    here = opened(400)
    page = here.page
    page.evaluate("refusals => { window.refusals = refusals }", [[status, said]] * 2)
    here.ask("A question")
    page.wait_for_selector(".failure")
    text = page.text_content(".failure")
    assert all(words in text for words in expected), text
    here.check()
    page.click('button:text("Edit the message")')
    assert page.input_value("#message") == "A question"
    assert page.locator(".turn").count() == 0
    page.press("#message", "Enter")
    page.wait_for_selector(".failure")
    page.click('button:text("Try again")')
    here.give({"content": "An answer"}, finish="stop")
    here.idle()
    assert page.locator(".failure").count() == 0
    assert here.bodies()[2]["messages"] == [{"role": "user", "content": "A question"}]


def test_what_breaks_off(opened: Any) -> None:
    """An error within a stream, and a connection that ends before the answer does."""
    here = opened()
    page = here.page
    here.ask("A question")
    here.give({"content": "The beginning"})
    page.evaluate(GIVE, ['data: {"error": {"message": "the engine failed"}}\n\n', True])
    page.wait_for_selector("text=The answer was cut.")
    assert "the engine failed" in page.text_content(".failure")
    assert page.text_content(".content") == "The beginning"
    page.click('button:text("Try again")')
    here.give({"content": "Again"})
    page.wait_for_selector("text=Again")
    page.evaluate("cut()")
    page.wait_for_selector("text=The connection broke")
    here.check()


def test_keys(opened: Any, start_server: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret-1\n")
    running = start_server("--api-key-file", str(keys), key="secret-1")
    here = opened(scripted=False, url=running.url)
    page = here.page
    page.wait_for_selector("#server[data-state=away]")
    assert "wants an API key" in page.text_content("#server-text")
    page.fill("#max_tokens", "3")
    here.ask("def main():")
    page.wait_for_selector(".failure")
    assert "wants an API key" in page.text_content(".failure")
    page.fill("#key", "secret-1")
    page.press("#key", "Tab")
    page.wait_for_selector("#server[data-state=ready]")
    page.click('button:text("Try again")')
    here.idle()
    assert "3 tokens" in page.locator(".facts").last.text_content()
    stores = page.evaluate(
        "[JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]"
    )
    assert "secret-1" in stores[0] and stores[1:] == ["{}", ""]
    page.reload()
    page.wait_for_selector("#server[data-state=ready]")
    assert page.input_value("#key") == "secret-1" and page.input_value("#max_tokens") == "3"


def test_the_keyboard(opened: Any) -> None:
    here = opened()
    page = here.page
    page.wait_for_selector("#server[data-state=ready]")
    assert page.evaluate("document.activeElement.id") == "message"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#message") == "one\ntwo"
    page.keyboard.press("Enter")
    here.give({"content": "ok"}, finish="stop")
    here.idle()
    assert page.text_content(".said") == "one\ntwo"
    page.keyboard.press("Enter")  # nothing to send
    assert page.locator(".user").count() == 1
    assert (
        page.evaluate("""() => [...document.querySelectorAll("input, textarea, select")]
        .filter(x => !x.labels.length).map(x => x.id)""")
        == []
    )


@pytest.mark.parametrize(("name", "value", "text"), [
    ("temperature", "3", "Temperature: a number from 0 to 2."),
    ("max_tokens", "1.5", "Max tokens: a whole number, 1 or more."),
    ("seed", "soon", "Seed: a whole number."),
    ("tools", "[{", "This is not JSON"),
    ("tools", '[{"type": "function"}]', "Each tool needs a name."),
])  # fmt: skip
def test_settings_that_cannot_be_sent(opened: Any, name: str, value: str, text: str) -> None:
    here = opened(400)
    page = here.page
    page.click("#toggle")
    page.fill(f"#{name}", value)
    page.click("#done")
    here.ask("A question")
    page.wait_for_selector(f"#{name}[aria-invalid=true]")
    assert page.evaluate("document.activeElement.id") == name
    assert text in page.text_content("#tools-error" if name == "tools" else "#options-error")
    assert here.bodies() == []
    here.check()
    page.fill(f"#{name}", "")
    page.click("#done")
    assert page.input_value("#message") == "A question"
    page.press("#message", "Enter")
    here.give(finish="stop")
    here.idle()
    assert "No text" in page.text_content(".answer")


@pytest.mark.slow
def test_a_long_conversation_stays_smooth(opened: Any) -> None:
    """Drawing what a frame brings costs no more when much has been drawn before it."""
    page = opened().page
    first, last = page.evaluate("""async () => {
      const {AnswerTurn} = await import("/page/turns.js");
      document.getElementById("empty").hidden = true;
      const scroll = document.getElementById("scroll");
      const turn = new AnswerTurn(() => { scroll.scrollTop = scroll.scrollHeight; });
      document.getElementById("log").append(turn.root);
      const spans = [];
      for (let i = 0; i < 600; i++) {
        for (let j = 0; j < 20; j++) turn.add({content: j === 19 ? ".\\n\\n" : ` word${j}`});
        const began = performance.now();
        turn.flush();
        scroll.scrollHeight;
        spans.push(performance.now() - began);
      }
      const median = spans => spans.sort((a, b) => a - b)[spans.length / 2];
      return [median(spans.slice(0, 100)), median(spans.slice(-100))];
    }""")
    assert last < 16, (first, last)  # a frame at 60 Hz
