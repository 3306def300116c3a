"""What a server takes from its checkpoint: end tokens, chat templates, the tokenizer; and what it
does without.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from openai import BadRequestError
from servers import Running, start
from transformers import AutoTokenizer

from glm_trt.engines.python.chat_template import ChatTemplates
from glm_trt.engines.python.special_tokens import SpecialTokens
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint

DIALOGUE = Path(__file__).parents[2] / "data" / "glm-5.1-dialogue"
QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]
        },
    },
}  # fmt: skip


PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)


def without_ends(directory: Path) -> Path:
    """The dialogue checkpoint, none of whose files has an end token."""
    shutil.copytree(DIALOGUE, directory)
    for path in directory.glob("*config.json"):
        fields = json.loads(path.read_text())
        kept = {name: of for name, of in fields.items() if not name.startswith("eos_token")}
        assert kept != fields, path
        path.write_text(json.dumps(kept))
    return directory


class Other(NamedTuple):
    """A checkpoint and its server."""

    checkpoint: Path
    server: Running


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Other]:
    """Without end tokens; GLM's format, by which alone the model knows of tools, is the template
    `tool_use`.
    """
    place = tmp_path_factory.mktemp("other")
    checkpoint = without_ends(place / "checkpoint")
    named = checkpoint / "additional_chat_templates"
    named.mkdir()
    glm = ChatTemplates({}, SpecialTokens(), "", has_glm_tokens=True).by_name["default"]
    (named / "tool_use.jinja").write_text(glm)
    for path, begin in ((checkpoint / "chat_template.jinja", "<sop>"), (named / "rag.jinja", "")):
        path.write_text(begin + PLAIN)
    export_checkpoint(checkpoint, place / "bundle", ExportOptions(dtypes=("float32",)))
    running = start(place / "bundle", "--drafts", "1")
    yield Other(checkpoint, running)
    assert running.end() == 0


def test_without_end_tokens(other: Other) -> None:
    """A form ends the answer; nothing else does, but its length."""

    def ask(**options: Any) -> Any:
        return other.server.client.chat.completions.create(
            model="glm-5.1", messages=QUESTION, temperature=0, max_tokens=150, **options
        ).choices[0]

    free = ask()
    assert free.finish_reason == "length" and free.message.reasoning_content
    called = ask(tools=[WEATHER], tool_choice="required")
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answered = ask(response_format=wanted)
    assert answered.finish_reason == "stop" and [*json.loads(answered.message.content)] == ["ok"]
    wanted["json_schema"] = {"name": "x", "schema": {"type": "number"}}
    with pytest.raises(BadRequestError, match="as this model has no end token") as found:
        ask(response_format=wanted)
    assert found.value.param == "response_format.json_schema.schema"


@pytest.mark.parametrize("tools", [None, [WEATHER]])
@pytest.mark.parametrize("name", [None, "default", "rag", "tool_use"])
def test_templates_by_name_are_those_of_transformers(
    other: Other, name: str | None, tools: list[Any] | None
) -> None:
    expected = AutoTokenizer.from_pretrained(other.checkpoint).apply_chat_template(
        QUESTION, tools=tools, chat_template=name, add_generation_prompt=True, return_dict=False,
        enable_thinking=True,
    )  # fmt: skip
    body = {"model": "glm-5.1", "messages": QUESTION}
    body |= {} if name is None else {"chat_template": name}
    body |= {} if tools is None else {"tools": tools}
    found = httpx2.post(f"{other.server.url}/tokenize", json=body).json()
    assert found["tokens"] == expected
    body |= {"tool_choice": "none"} if tools else {}  # the prompt lists no tools then
    answer = httpx2.post(
        f"{other.server.url}/v1/chat/completions", json=body | {"max_tokens": 1}, timeout=60
    ).json()
    without = AutoTokenizer.from_pretrained(other.checkpoint).apply_chat_template(
        QUESTION, chat_template=name, add_generation_prompt=True, return_dict=False,
        enable_thinking=True,
    )  # fmt: skip
    assert answer["usage"]["prompt_tokens"] == len(without)


@pytest.mark.parametrize(("change", "param", "text"), [
    ({"chat_template": "none"}, "chat_template", "default, rag, tool_use; found 'none'"),
    ({"chat_template": "{{ messages }}"}, "chat_template", "not a template: default, rag, "),
    ({"chat_template": ""}, "chat_template", "found ''"),
    *(({"chat_template_kwargs": {name: "rag"}}, "chat_template_kwargs", f"names than {name}")
      for name in ("template_name", "chat_template", "self")),
])  # fmt: skip
def test_no_template_but_by_its_name(
    other: Other, change: dict[str, Any], param: str, text: str
) -> None:
    for path, messages in (("chat/completions", "messages"), ("responses", "input")):
        body = {"model": "glm-5.1", messages: QUESTION} | change
        answer = httpx2.post(f"{other.server.url}/v1/{path}", json=body, timeout=60)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert text in error["message"]


def test_a_response_by_a_template(other: Other) -> None:
    counts = [
        other.server.client.responses.create(
            model="glm-5.1", input=QUESTION, max_output_tokens=1, extra_body=body
        ).usage.input_tokens  # type: ignore[union-attr]
        for body in ({}, {"chat_template": "rag"}, {"chat_template": "tool_use"})
    ]
    assert counts[1] == counts[0] - 1 and len({*counts}) == 3


def test_without_a_tokenizer(tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    shutil.copytree(DIALOGUE, checkpoint, ignore=shutil.ignore_patterns("tokenizer.json"))
    export_checkpoint(checkpoint, bundle, ExportOptions(dtypes=("float32",)))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "glm_trt.cli", "serve", str(bundle), "--port", "0"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    expected = (
        f"glm-trt serve: error: {bundle}: has no tokenizer.json (its checkpoint had none), which "
        "serving needs; put it beside the checkpoint's config.json and export again\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
